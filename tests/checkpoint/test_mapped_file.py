"""Weight files as they are used: views of one mapping, and large pages where the file system has them."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import weakref
from pathlib import Path

import pytest
import torch

from antiphon.checkpoint import mapped_file
from antiphon.checkpoint.mapped_file import MappedFile
from antiphon.checkpoint.safetensors_files import read_file
from antiphon.checkpoint.safetensors_writer import write_tensors
from antiphon_kernels.weights_memory import PAGE_BYTES, has_large_pages

SIZES = (0, 64, PAGE_BYTES - 512, 1 << 10, 3 * PAGE_BYTES + 64, PAGE_BYTES, 77)
"""Bytes of tensors that end before, at and behind large pages, some filling several."""


@pytest.fixture
def written(tmp_path) -> tuple[Path, dict[str, torch.Tensor], str]:
    """A file of some 12 MB, its tensors and the digest that writing it returned."""
    tensors = {"matrix": torch.randn(1 << 10, 1 << 10)}
    tensors |= {f"t{n}": torch.randint(-128, 128, (size,), dtype=torch.int8) for n, size in enumerate(SIZES)}
    path = tmp_path / "model.safetensors"
    specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return path, tensors, write_tensors(path, specs, tensors.items())


def test_writing_in_pages_changes_no_byte(written):
    path, tensors, digest = written
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    stored = read_file(path)
    assert len(stored) == len(tensors)
    assert all(torch.equal(stored[name].read(), tensor) for name, tensor in tensors.items())


def test_tensors_are_views_that_keep_the_mapping(written):
    path, tensors, _ = written
    file, stored = MappedFile(path), read_file(path)
    mapping = weakref.ref(file._memory)
    views = {name: file.tensor(stored[name]) for name in tensors if tensors[name].numel()}
    assert all(torch.equal(view, tensors[name]) for name, view in views.items())
    assert views["matrix"].data_ptr() % 64 == 0
    addresses = {view.data_ptr() - stored[name].offset for name, view in views.items()}
    assert len(addresses) == 1
    del file
    last = views.popitem()[1]
    views.clear()
    gc.collect()
    assert mapping() is not None and last.sum() is not None
    del last
    gc.collect()
    assert mapping() is None


def test_what_is_written_or_read_mapped_has_large_pages(written, tmp_path):
    """However its tensors are cut, a file lies in the cache as one that was written in large pieces; so does one that is read
    for the first time."""
    path, _, _ = written
    plain = tmp_path / "plain"
    plain.write_bytes(path.read_bytes())
    if not MappedFile(plain).in_large_pages():
        pytest.skip("this file system, or this kernel, keeps files in small pages")
    assert MappedFile(path).in_large_pages()
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert MappedFile(path).in_large_pages()


def test_a_file_cached_in_small_pieces_is_seen(tmp_path):
    path = tmp_path / "small"
    with open(path, "wb", buffering=0) as file:
        file.writelines(bytes(4096) for _ in range(4 * PAGE_BYTES // 4096))
    assert not MappedFile(path).in_large_pages()


@pytest.mark.parametrize(("share", "expected"), [(1.0, True), (mapped_file.ENOUGH, True), (0.85, False), (0.0, False)])
def test_what_the_system_says_of_this_mapping_counts(written, monkeypatch, share, expected):
    """Not what it says of its neighbours."""
    file = MappedFile(written[0])
    begin = torch.frombuffer(file._memory, dtype=torch.uint8).data_ptr()
    pages = (len(file._memory) + begin) // PAGE_BYTES - -(-begin // PAGE_BYTES)
    ranges = {(begin - 4096, begin): 1e9, (begin, begin + len(file._memory)): share * pages * PAGE_BYTES}
    ranges[begin + len(file._memory), begin + 10**9] = 1e9
    text = "".join(
        f"{a:x}-{b:x} rw-p 00000000 fe:00 1 /model\nRss: 4 kB\nFilePmdMapped: {int(size) // 1024:8} kB\nVmFlags: rd hg\n"
        for (a, b), size in ranges.items()
    )
    monkeypatch.setattr(mapped_file, "open", lambda *args, **kwargs: io.StringIO(text), raising=False)
    assert file.in_large_pages() is expected


def test_nothing_to_gain_below_a_large_page(tmp_path):
    path = tmp_path / "tiny"
    path.write_bytes(bytes(PAGE_BYTES - 1))
    assert MappedFile(path).in_large_pages()


def test_without_proc_pages_count_as_small(written, monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    file = MappedFile(written[0])
    monkeypatch.setattr(mapped_file, "open", missing, raising=False)
    assert not file.in_large_pages()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("always [madvise] never", True), ("[always] madvise never", True), ("always madvise [never]", False)],
)
def test_systems_with_large_pages(monkeypatch, text, expected):
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: text)
    assert has_large_pages() is expected


def test_systems_that_do_not_say(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert has_large_pages() is False
