"""The program: `pistage` and `python -m pistage` start here."""

from pistage.cli.root import main

if __name__ == "__main__":
    main()
