"""What a run is and what should happen next: pure, no clock, no chance, no socket, no await."""
