"""Result files: nothing damaged is believed, and nowhere is refused too late."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import re
import stat
from pathlib import Path

import h5netcdf
import h5py
import numpy as np
import pytest
import xarray as xr
from storage import (
    HEADER,
    begun,
    bits,
    make_values,
    read_damaged,
    unprivileged,
)

from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    LandscapexError,
    OutputError,
    ResumeMismatchError,
)
from landscapex.storage import store
from landscapex.storage.files import check_result_name
from landscapex.storage.store import Journal


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "s.nc"


# Fault 7 and damaged files in general


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    return xr.Dataset(
        {
            "loss": (("alpha", "beta"), make_values(HEADER)[:, 0].reshape(3, 5)),
            "evaluated": (("alpha", "beta"), np.arange(15).reshape(3, 5) != 7),
            "names": ("beta", np.array([*"abcd", "ü"], dtype=object)),
            "scale": ((), 2.5),
        },
        {"alpha": ("alpha", np.linspace(-1, 1, 3), {"unit": "1 = ‖w‖"}), "beta": np.arange(5.0)},
        {"kind": "surface", "provenance": json.dumps({"seed": 0})},
    )


def test_a_dataset_comes_back_identical(out, dataset):
    assert store.write_dataset(dataset, out) == out
    xr.testing.assert_identical(store.read_dataset(out), dataset)
    assert os.listdir(out.parent) == ["s.nc"]


def test_a_file_can_be_read_without_landscapex(out, dataset):
    store.write_dataset(dataset, out)
    xr.testing.assert_identical(xr.load_dataset(out, engine="h5netcdf"), dataset)
    with h5py.File(out) as file:
        assert file.userblock_size == 512
        assert file["loss"][:].tobytes() == dataset["loss"].values.tobytes()
        assert file["evaluated"][:].tolist() == dataset["evaluated"].values.astype(int).tolist()
        assert file.attrs["kind"] == "surface"
        assert file["alpha"].attrs["unit"] == "1 = ‖w‖"
        assert "_FillValue" not in file["loss"].attrs  # it would make holes of NaN
        checked = {name: file[name].fletcher32 for name in file if file[name].dtype.kind in "fib"}
    assert checked == {"loss": True, "evaluated": True, "alpha": True, "beta": True, "scale": False}
    data = out.read_bytes()
    assert data[:512].rstrip(b"\0").decode() == (
        "landscapex result 1; the rest is HDF5 (NetCDF-4)\n"
        f"SHA-256 of the bytes from 512 on: {hashlib.sha256(data[512:]).hexdigest()}\n"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_stops_the_writing_of_a_result_goes_on_to_the_caller(out, dataset, monkeypatch, error):
    """And what was there before is still there."""
    store.write_dataset(dataset, out)
    before = out.read_bytes()

    def stop(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(error):
        store.write_dataset(dataset.assign_attrs(kind="line"), out)
    assert os.listdir(out.parent) == ["s.nc"]
    assert out.read_bytes() == before


def test_a_result_is_on_the_disk_before_it_takes_its_name_and_so_is_the_name(
    out, dataset, monkeypatch
):
    events = []
    fsync, rename = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("replace")
        assert source.read_bytes().startswith(store.MAGIC)
        assert re.fullmatch(rf"{target.name}\.{os.getpid()}\.\d+\.tmp", source.name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    store.write_dataset(dataset, out)
    assert events == ["file", "replace", "folder"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_file_systems_that_cannot_sync_folders_hold_results(out, dataset, monkeypatch, code):
    fail_for_folders(monkeypatch, code)
    store.write_dataset(dataset, out)
    assert store.read_dataset(out).identical(dataset)


def test_a_folder_that_the_disk_fails_to_sync_is_an_error(out, dataset, monkeypatch):
    fail_for_folders(monkeypatch, errno.EIO)
    with pytest.raises(OutputError, match=r"could not be written: .*bytes are needed") as caught:
        store.write_dataset(dataset, out)
    assert caught.value.errno == errno.EIO


def fail_for_folders(monkeypatch, code: int) -> None:
    """Let fsync(2) fail for folders."""
    fsync = os.fsync

    def fails(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)


def test_what_cannot_be_read_is_not_replaced(tmp_path):
    with pytest.raises(OutputError, match="could not be read: Is a directory") as caught:
        store.check_replaceable(tmp_path)
    assert caught.value.errno == errno.EISDIR


def test_the_same_dataset_gives_the_same_bytes(tmp_path, dataset):
    a, b = (store.write_dataset(dataset, tmp_path / name).read_bytes() for name in "ab")
    assert a == b


def test_the_dataset_of_the_caller_is_not_touched(out, dataset):
    before = dataset.copy(deep=True)
    dataset["loss"].encoding = {"dtype": "float32"}
    store.write_dataset(dataset, out)
    assert dataset["loss"].encoding == {"dtype": "float32"}
    xr.testing.assert_identical(dataset, before)
    xr.testing.assert_identical(store.read_dataset(out), before)


def test_trap_07_a_dataset_keeps_nan_payloads(out):
    raw = np.array([0x7FF8000000000000, 0xFFF8000000000123, 0x7FF0000000000000, 1 << 63], np.uint64)
    store.write_dataset(xr.Dataset({"loss": ("alpha", raw.view(np.float64))}), out)
    assert bits(store.read_dataset(out)["loss"].values) == raw.tolist()


def test_attributes_may_be_longer_than_hdf5_likes(out):
    text = json.dumps({"notes": ["ü" * 300_000]})
    store.write_dataset(xr.Dataset(attrs={"provenance": text}), out)
    assert store.read_dataset(out).attrs["provenance"] == text


@pytest.mark.parametrize(("entries", "chunks"), [(4, (1, 5)), (10, (2, 5)), (99, (3, 5))])
def test_checksums_are_of_one_chunk_or_of_slabs(out, dataset, monkeypatch, entries, chunks):
    monkeypatch.setattr(store, "_CHUNK_ENTRIES", entries)
    store.write_dataset(dataset, out)
    with h5py.File(out) as file:
        assert file["loss"].chunks == chunks
        assert file["scale"].chunks is None


def test_large_variables_are_stored_in_slabs(out):
    values = np.arange(3_000_000.0).reshape(3, 1000, 1000)
    store.write_dataset(xr.Dataset({"loss": (("alpha", "beta", "gamma"), values)}), out)
    with h5py.File(out) as file:
        assert file["loss"].chunks == (1, 1000, 1000)
    assert np.array_equal(store.read_dataset(out)["loss"].values, values)


@pytest.mark.parametrize("place", [0, 60, 200, 511, 512, 700, -1])
def test_fault_07_one_flipped_bit_is_found_before_hdf5_sees_a_byte(
    out, dataset, monkeypatch, place
):
    data = bytearray(store.write_dataset(dataset, out).read_bytes())
    data[place] ^= 1
    out.write_bytes(data)
    monkeypatch.setattr(store.h5netcdf, "File", lambda *args, **kw: pytest.fail("HDF5 was asked"))
    with pytest.raises(CorruptFileError, match=r"SHA-256|must be a result of landscapex"):
        store.read_dataset(out)


def test_a_plain_hdf5_file_with_our_hash_is_refused_as_ours(out):
    data = b"this is no HDF5 file"
    out.write_bytes(store._user_block(data) + data)
    with pytest.raises(CorruptFileError, match="is not a result of landscapex"):
        store.read_dataset(out)


def test_files_that_are_not_results_are_refused(tmp_path):
    with h5netcdf.File(io.BytesIO(), "w") as file:
        file.dimensions = {"x": 1}
    plain = tmp_path / "plain.nc"
    xr.Dataset({"loss": ("alpha", np.zeros(3))}).to_netcdf(plain, engine="h5netcdf")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a,b\n1,2\n")
    for name, message in {
        "plain.nc": r"must be a result of landscapex, got one that begins with b'\\x89HDF",
        "empty": "must be a result of landscapex, got an empty file",
        "text": "must be a result of landscapex, got one that begins with b'a,b",
        "fifo": "must be a regular file",
        "missing": "could not be read: No such file or directory",
        ".": "must be a regular file",
    }.items():
        with pytest.raises(CorruptFileError, match=message):
            store.read_dataset(tmp_path / name)


@pytest.mark.parametrize("count", [400])
def test_fault_07_damaged_results_give_our_errors_or_the_same_numbers(out, dataset, count):
    data = store.write_dataset(dataset, out).read_bytes()

    def check(path: Path) -> bool:
        return store.read_dataset(path).identical(dataset)

    reads = read_damaged(data, out, check, count)
    assert (reads.wrong, reads.foreign) == (0, 0)
    assert reads.refused == count
    assert reads.slowest < 5


# Fault 28


def weird_places(folder: Path) -> dict[str, tuple[str | Path, int]]:
    loop = folder / "loop"
    loop.symlink_to(loop)
    (folder / "file").touch()
    os.mkfifo(folder / "fifo")
    return {
        "must be a file, got the folder": (folder, errno.EISDIR),
        "create .*nowhere first": (folder / "nowhere" / "s.nc", errno.ENOENT),
        "Too many levels of symbolic links": (loop, errno.ELOOP),
        "symbolic links|folder that exists": (loop / "s.nc", errno.ELOOP),
        "File name too long": (folder / ("x" * 300), errno.ENAMETOOLONG),
        "Not a directory": (folder / "file" / "s.nc", errno.ENOTDIR),
        "must be a regular file, got /dev/null": ("/dev/null", errno.EINVAL),
        "must be a regular file, got .*fifo": (folder / "fifo", errno.EINVAL),
        "must be the name of a file, got ''": ("", errno.EINVAL),
        r"must be the name of a file, got 'a\\x00b'": ("a\0b", errno.EINVAL),
    }


def test_fault_28_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path, dataset):
    for message, (place, code) in weird_places(tmp_path).items():
        before = sorted(os.listdir(tmp_path))
        for use in (lambda p: Journal.open(p, HEADER), lambda p: store.write_dataset(dataset, p)):
            with pytest.raises(OutputError, match=message) as caught:
                use(place)
            assert caught.value.errno == code
        assert sorted(os.listdir(tmp_path)) == before


def test_fault_28_a_name_with_no_room_for_the_journals_is_refused(tmp_path):
    with pytest.raises(OutputError, match="File name too long"):
        Journal.open(tmp_path / ("x" * 250), HEADER)
    assert os.listdir(tmp_path) == []


def test_fault_28_a_folder_without_permission_is_refused_at_the_start(dataset):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        os.chmod(folder, 0o755)
        closed = Path(folder, "closed")
        closed.mkdir(0o555)
        with unprivileged():
            for use in (
                lambda: Journal.open(closed / "s.nc", HEADER),
                lambda: store.write_dataset(dataset, closed / "s.nc"),
            ):
                with pytest.raises(OutputError, match="no permission to write") as caught:
                    use()
                assert caught.value.errno == errno.EACCES


def test_fault_28_a_journal_that_belongs_to_somebody_else(dataset):
    if os.geteuid() != 0:
        pytest.skip("only root can make a file that is somebody else's")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        out = Path(folder, "s.nc")
        begun(out, 8)
        with unprivileged(), pytest.raises(OutputError, match="Permission denied"):
            Journal.open(out, HEADER)
        Journal.open(out, HEADER).close()


@pytest.mark.parametrize(
    "name", ["ünïcödé ‖d‖.nc", "with space.nc", "s*[0-9]?.nc", "no-suffix", "."]
)
def test_fault_28_unusual_names_work(tmp_path, dataset, name):
    out = tmp_path / (name if name != "." else "./sub/../s.nc")
    (tmp_path / "sub").mkdir()
    (tmp_path / "s5.nc.journal").write_text("not ours")
    begun(out, 15)
    assert store.read_journals(out)[1].all()
    store.write_dataset(dataset, out)
    store.remove_journals(out)
    xr.testing.assert_identical(store.read_dataset(out), dataset)
    assert (tmp_path / "s5.nc.journal").exists()


def test_fault_28_a_link_is_written_through_and_shares_the_lock(tmp_path, dataset):
    real, link = tmp_path / "real.nc", tmp_path / "link.nc"
    link.symlink_to(real)
    with Journal.open(link, HEADER) as j:
        assert j.path == tmp_path / "real.nc.journal"
        with pytest.raises(OutputError, match="two runs at once"):
            Journal.open(real, HEADER)
    store.write_dataset(dataset, link)
    assert link.is_symlink()
    xr.testing.assert_identical(store.read_dataset(real), dataset)


def test_fault_28_the_name_of_a_journal_is_not_the_name_of_a_result(tmp_path):
    for name in ("s.nc.journal", "s.nc.journal.shard0of2"):
        with pytest.raises(OutputError, match="`out` must name the result, not its journal"):
            Journal.open(tmp_path / name, HEADER)


def test_a_path_must_be_a_path():
    for path in (3, None, b"s.nc"):
        with pytest.raises(ArgumentTypeError, match="`path` must be a string or a Path, got"):
            store.read_dataset(path)


@pytest.mark.parametrize("name", ["", "a\0b", "half a pair \ud800.nc"])
def test_a_path_must_be_the_name_of_a_file(name):
    with pytest.raises(OutputError, match="`path` must be the name of a file, got '") as caught:
        store.check_path(name)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("suffixes", "way"),
    [
        ([".png", ".svg", ".pdf", ".PNG"], "to_picture"),
        ([".jpg", ".jpeg"], "landscapex.plot.save"),
        ([".html", ".htm"], "to_html"),
        ([".h5", ".hdf5"], "to_h5"),
        ([".csv"], "to_csv"),
        ([".vts"], "to_vts"),
    ],
)
def test_the_name_of_an_export_is_no_name_of_a_result(suffixes, way):
    for suffix in suffixes:
        with pytest.raises(ArgumentError, match=rf"s\.nc; {suffix.lower()} is .* by `{way}` or"):
            check_result_name(f"s{suffix}")
    check_result_name("s.nc")
    check_result_name("s")


def test_a_result_is_readable_by_whom_the_umask_says(out, dataset):
    before = os.umask(0o027)
    try:
        store.write_dataset(dataset, out)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o640


# Trap 41


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


def test_trap_41_no_pickle_is_read_or_written(out, dataset, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("pickle was used")

    proof = out.with_name("ran")
    data = pickle.dumps(Payload(proof))
    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    begun(out, 15)
    store.read_journals(out)
    store.write_dataset(dataset, out)
    store.read_dataset(out)
    out.write_bytes(data)
    out.with_name("s.nc.journal").write_bytes(data)
    for use in (store.read_dataset, store.read_journals):
        with pytest.raises(CorruptFileError):
            use(out)
    assert not proof.exists()


def test_every_error_is_one_of_ours_and_one_of_pythons():
    for kind in (OutputError, CorruptFileError):
        assert issubclass(kind, LandscapexError)
        assert issubclass(kind, OSError)
    assert issubclass(ResumeMismatchError, ValueError)


def test_global_generators_are_left_alone(out, dataset, generators_untouched):
    begun(out, 15)
    store.write_dataset(dataset, out)
    store.read_dataset(out)
