"""The offer: what this process may use of the machine, less what is kept; and what the machine is called."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import pytest

from pistage.agent.capacity import capacity_of, labels_of
from pistage.agent.gpus import Gpu
from pistage.config import AgentConfig
from tests.agent.test_gpus import a_root

CORES_MILLI = len(os.sched_getaffinity(0)) * 1000
V1, V2 = "sys/fs/cgroup/cpu/", "sys/fs/cgroup/"


@pytest.mark.parametrize(
    ("files", "cpus_milli"),
    [
        ({}, CORES_MILLI),
        ({V2 + "cpu.max": "max 100000\n"}, CORES_MILLI),
        ({V2 + "cpu.max": "55555 100000\n"}, 555),
        ({V2 + "cpu.max": "1000 100000\n"}, 100),
        ({V2 + "cpu.max": "99900000 100000\n"}, CORES_MILLI),
        ({V1 + "cpu.cfs_quota_us": "-1\n", V1 + "cpu.cfs_period_us": "100000\n"}, CORES_MILLI),
        ({V1 + "cpu.cfs_quota_us": "25000\n", V1 + "cpu.cfs_period_us": "100000\n"}, 250),
        ({V1 + "cpu.cfs_quota_us": "25000\n", V1 + "cpu.cfs_period_us": "0\n"}, CORES_MILLI),
        (
            {
                "proc/self/cgroup": "0::/system.slice/pistage.service\n",
                V2 + "system.slice/pistage.service/cpu.max": "80000 100000\n",
                V2 + "system.slice/cpu.max": "70000 100000\n",
            },
            700,
        ),
        ({"proc/self/cgroup": "0::/../../x\n4:cpu:/a\nnonsense\n", V1 + "a/cpu.cfs_quota_us": "30000",
          V1 + "a/cpu.cfs_period_us": "100000"}, 300),
    ],
    ids=["none", "max", "half", "little", "more than there is", "v1 none", "v1", "v1 broken", "a slice", "v1 group"],
)  # fmt: skip
def test_a_quota_on_the_cpu_is_heeded(tmp_path: Path, files: Mapping[str, str], cpus_milli: int) -> None:
    settings = AgentConfig(data_dir=tmp_path)
    assert capacity_of(settings, gpus=0, root=a_root(tmp_path, files)).cpus_milli == cpus_milli


def test_what_is_kept_is_not_offered_unless_the_offer_is_set(tmp_path: Path) -> None:
    for given, cpus_milli in (
        ({"reserve_cpus": 0.25}, CORES_MILLI - 250),
        ({"reserve_cpus": 1000}, 100),
        ({"reserve_cpus": 0.5, "cpus": 3}, 3000),
    ):
        settings = AgentConfig(data_dir=tmp_path, **given)  # type: ignore[arg-type]
        assert capacity_of(settings, gpus=0, root=tmp_path).cpus_milli == cpus_milli


def test_a_part_of_a_core_still_has_places(tmp_path: Path) -> None:
    assert capacity_of(AgentConfig(data_dir=tmp_path, cpus=0.2), gpus=0, root=tmp_path).slots == 4


def test_memory_that_the_group_may_not_use_is_not_offered(tmp_path: Path) -> None:
    root = a_root(tmp_path, {"sys/fs/cgroup/memory.max": str(1024 * 1024**2)})
    assert capacity_of(AgentConfig(data_dir=tmp_path), gpus=0, root=root).memory_bytes == 768 * 1024**2


def test_every_agent_says_what_machine_it_is_on(tmp_path: Path) -> None:
    labels = labels_of(AgentConfig(data_dir=tmp_path, labels={"zone": "a"}), ())
    assert labels == {"os": "linux", "arch": labels["arch"], "host": platform.node(), "zone": "a"}
    assert labels["arch"] not in {"", "x86_64"}


def test_labels_of_the_configuration_go_first(tmp_path: Path) -> None:
    gpu = Gpu(vendor="amd", id="/dev/dri/renderD128", index=0)
    labels = labels_of(AgentConfig(data_dir=tmp_path, labels={"host": "b", "gpu": "mi300"}), [gpu])
    assert (labels["host"], labels["gpu"], labels["gpu_vendor"]) == ("b", "mi300", "amd")
