"""A repository is the old one or the new one, and what it holds is what its manifest says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model_repo import codec, publish
from model_repo.frontier import Frontier
from model_repo.publish import MANIFEST, Repository, RepositoryError, file_digest
from tests.fakes import tiny_repository


def _sources(repository: Repository, aside: Path) -> dict[str, Path]:
    """Copy the published folders aside, as a search would hold them before publishing."""
    folders = {}
    for variant in repository.frontier.variants:
        shutil.copytree(repository.root / "models" / variant.folder, aside / variant.folder)
        folders[variant.folder] = aside / variant.folder
    return folders


def _files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): file_digest(path) for path in root.rglob("*") if path.is_file()}


def test_reads_what_was_published(repository: Repository) -> None:
    """Reading gives the published values, and the digest of the manifest's bytes."""
    read = publish.read(repository.root)
    assert read == repository
    assert read.digest == file_digest(repository.root / MANIFEST)
    for variant in read.frontier.variants:
        assert read.path(variant.segments[0]).is_file()


def test_publishing_again_changes_no_model(repository: Repository, tmp_path: Path) -> None:
    """The same frontier published again touches no model file."""
    before = {path: path.stat().st_mtime_ns for path in (repository.root / "models").rglob("*.onnx")}
    publish.publish(repository.root, repository.frontier, _sources(repository, tmp_path / "aside"))
    assert before == {path: path.stat().st_mtime_ns for path in (repository.root / "models").rglob("*.onnx")}


@pytest.mark.parametrize("damage", ["gone", "short", "changed"])
def test_damage_is_named(repository: Repository, damage: str) -> None:
    """A file that is missing, of another size or of another content is refused by name."""
    file = repository.path(repository.frontier.variants[1].segments[0])
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "short":
        file.write_bytes(content[:-1])
    else:
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    expected = {"gone": "No such file", "short": "bytes, the manifest says", "changed": "sha256"}[damage]
    with pytest.raises(RepositoryError, match=expected) as caught:
        publish.read(repository.root)
    assert str(file) in str(caught.value)
    assert publish.read(repository.root, verify=False).frontier == repository.frontier


def test_no_repository(tmp_path: Path) -> None:
    """A folder without a manifest says that it is none; a broken manifest names its file."""
    with pytest.raises(RepositoryError, match="published repository"):
        publish.read(tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(codec.ManifestError, match=MANIFEST):
        publish.read(tmp_path)


def _other(tmp_path: Path) -> tuple[Frontier, dict[str, Path]]:
    """Return another frontier, whose folders differ, and its sources."""
    other = tiny_repository(tmp_path / "other", shared_trunk=True)
    return other.frontier, _sources(other, tmp_path / "other-aside")


def test_wrong_content_leaves_the_old_repository(repository: Repository, tmp_path: Path) -> None:
    """A folder that is not what the new manifest says is refused; readers still get the old repository."""
    frontier, folders = _other(tmp_path)
    (folders[frontier.variants[1].folder] / "1" / "head.onnx").write_bytes(b"another")
    with pytest.raises(RepositoryError, match=r"head\.onnx"):
        publish.publish(repository.root, frontier, folders)
    assert publish.read(repository.root) == repository
    assert not [path for path in repository.root.rglob("*") if "staging" in path.name]


def test_missing_folder_leaves_the_old_repository(repository: Repository, tmp_path: Path) -> None:
    """A variant whose folder was not handed over, and one that cannot be copied, are refused."""
    frontier, folders = _other(tmp_path)
    with pytest.raises(RepositoryError):
        publish.publish(repository.root, frontier, {})
    shutil.rmtree(folders[frontier.variants[1].folder])
    with pytest.raises(FileNotFoundError):
        publish.publish(repository.root, frontier, folders)
    assert publish.read(repository.root) == repository


def test_crash_before_the_manifest(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dying at the last moment leaves the old repository whole; publishing again then succeeds."""
    frontier, folders = _other(tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", die)
        with pytest.raises(KeyboardInterrupt):
            publish.publish(repository.root, frontier, folders)
    assert publish.read(repository.root) == repository
    publish.publish(repository.root, frontier, folders)
    assert publish.read(repository.root).frontier == frontier


def test_replaced_folders_are_collected_after_their_grace(repository: Repository, tmp_path: Path) -> None:
    """Folders that no manifest names stay for the grace period, and go when it is over."""
    frontier, folders = _other(tmp_path)
    root = repository.root
    old = [root / "models" / variant.folder for variant in repository.frontier.variants]
    publish.publish(root, frontier, folders, grace_s=60.0, clock_s=lambda: 1000.0)
    assert all(folder.is_dir() for folder in old)
    assert publish.collect(root, frontier, grace_s=60.0, clock_s=lambda: 1059.0) == []
    assert publish.collect(root, frontier, grace_s=60.0, clock_s=lambda: 1060.0) == sorted(old)
    assert publish.read(root).frontier == frontier
    assert {path.name for path in (root / "models").iterdir()} == {v.folder for v in frontier.variants}


def test_a_folder_that_is_named_again_is_kept(repository: Repository, tmp_path: Path) -> None:
    """A folder that comes back into the manifest loses its mark and outlives any grace."""
    frontier, folders = _other(tmp_path)
    root = repository.root
    publish.publish(root, frontier, folders, grace_s=60.0, clock_s=lambda: 1000.0)
    publish.publish(root, repository.frontier, {}, grace_s=60.0, clock_s=lambda: 1030.0)
    removed = publish.collect(root, repository.frontier, grace_s=60.0, clock_s=lambda: 5000.0)
    assert {path.name for path in removed} == {variant.folder for variant in frontier.variants}
    assert publish.read(root) == repository


def test_files_outside_models_are_refused(repository: Repository) -> None:
    """A segment that does not lie in a folder under models/ is not published: Triton mounts that alone."""
    variant = repository.frontier.variants[0]
    segment = variant.segments[0].model_copy(update={"file": "model.onnx"})
    shutil.copy(repository.path(variant.segments[0]), repository.root / "model.onnx")
    moved = variant.model_copy(update={"segments": (segment,)})
    frontier = repository.frontier.model_copy(update={"variants": (moved, *repository.frontier.variants[1:])})
    with pytest.raises(RepositoryError, match=r"model\.onnx"):
        publish.publish(repository.root, frontier, {})
    assert publish.read(repository.root) == repository


@pytest.mark.parametrize("shared_trunk", [False, True])
def test_a_copy_is_the_same_set_elsewhere(tmp_path: Path, shared_trunk: bool) -> None:
    """Manifest and models are those of the repository that was copied, whatever was there before."""
    source = tiny_repository(tmp_path / "source", shared_trunk=shared_trunk, training=1)
    target = tiny_repository(tmp_path / "target").root
    assert publish.copy(source, target).digest == source.digest
    copied = publish.read(target)
    assert copied.frontier == source.frontier
    assert _files(source.root).items() <= _files(target).items()


def test_published_files_do_not_depend_on_their_sources(repository: Repository, tmp_path: Path) -> None:
    """Removing the sources after publishing harms nothing."""
    frontier, folders = _other(tmp_path)
    publish.publish(tmp_path / "new", frontier, folders)
    for folder in folders.values():
        shutil.rmtree(folder)
    assert publish.read(tmp_path / "new").frontier == frontier
    assert len(_files(tmp_path / "new")) == 1 + 4
