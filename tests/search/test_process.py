"""What a training process knows of its machine."""

from __future__ import annotations

from pathlib import Path

from search.process import free_memory


def machine(root: Path, available_kb: int, limit: str | None = None, used: int = 0) -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable:   {available_kb} kB\n")
    if limit is not None:
        cgroup = root / "sys/fs/cgroup"
        cgroup.mkdir(parents=True)
        (cgroup / "memory.max").write_text(limit + "\n")
        (cgroup / "memory.current").write_text(f"{used}\n")
    return root


def test_free_memory_is_what_the_machine_has_left(tmp_path: Path) -> None:
    """Without a limit, and with one that says "max", the machine's own figure counts."""
    assert free_memory(machine(tmp_path / "a", 2000)) == 2000 * 1024
    assert free_memory(machine(tmp_path / "b", 2000, "max")) == 2000 * 1024


def test_a_container_with_less_has_less(tmp_path: Path) -> None:
    """A container's limit counts where it leaves less than the machine; past it nothing is left."""
    assert free_memory(machine(tmp_path / "a", 2000, "1000000", used=400_000)) == 600_000
    assert free_memory(machine(tmp_path / "b", 2000, "9000000")) == 2000 * 1024
    assert free_memory(machine(tmp_path / "c", 2000, "1000", used=2000)) == 0


def test_without_linux_files_physical_memory_is_the_answer(tmp_path: Path) -> None:
    """Where there is nothing to read, what the machine is built with is the best there is."""
    assert free_memory(tmp_path) > 1 << 20
