"""Frames become files: whoever is killed on the way, each decision is a row, or counted as missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from sidecar.domain.path_masks import PathMasks
from sidecar.stores.decisions.frames import Counts, Frame, Kind
from sidecar.stores.decisions.lines import Lines
from sidecar.stores.decisions.log_folder import LogFolder
from sidecar.stores.decisions.log_writer import Batch, LogState, LogWriter, Totals
from sidecar.stores.decisions.missing import Cause, MissingSpan, read_missing
from sidecar.stores.decisions.parquet import connect
from sidecar.stores.decisions.row_buffer import RowBuffer
from sidecar.stores.decisions.segments import segments_of
from tests.decision_log import START_US, decision_row, lines_of

NOW_US = START_US


def lines(*seconds: int, path: str = "/a") -> Lines:
    """A row of each of *seconds*, as a worker sends them; no seconds = no rows."""
    rows = [decision_row(second, f"id{second}", path=path) for second in seconds]
    return lines_of(rows)[0] if rows else Lines()


class FrameSource:
    """A process that sends frames of allowed or refused requests."""

    def __init__(self, name: str = "w1") -> None:
        """Begin with second 0."""
        self.name = name
        self.counts = Counts()
        self.second = 0

    def frame(self, rows: int = 1, is_allowed: bool = True, **others: int) -> bytes:
        """A frame with so many rows, one each a second; *others* are added to its counts."""
        seconds = range(self.second + 1, self.second + rows + 1)
        self.second += rows
        more = {"allowed" if is_allowed else "refused": rows, **others}
        self.counts = Counts(**{k: v + more.get(k, 0) for k, v in self.counts._asdict().items()})
        frame = Frame(1, self.name, self.now_us, self.now_us, self.counts, lines(*seconds), is_allowed)
        return frame.packed()

    def ended(self, allowed: int, refused: int) -> bytes:
        """The supervisor's frame: the worker made so many decisions in all."""
        self.second += 1
        counts = Counts(allowed, refused)
        return Frame(1, self.name, self.now_us, self.now_us, counts, kind=Kind.ENDED).packed()

    @property
    def now_us(self) -> int:
        """The time of its last row."""
        return NOW_US + self.second * 1_000_000


class WriterOnAFolder:
    """A folder, one writer after another, and what the last one told the supervisor."""

    def __init__(self, tmp_path: Path) -> None:
        """Open the folder and start a writer."""
        self.log = tmp_path
        self.connection = connect(tmp_path)
        self.state: LogState | None = None
        self.start()

    def start(self) -> None:
        """Start a writer in place of the last one, which was killed: the kernel has released its lock."""
        if self.state is not None:
            self.folder.close()
        self.folder = LogFolder.open(self.log, "box", NOW_US + 10**9)
        self.writer = LogWriter(self.folder, PathMasks(()))
        self.writer.restore(self.state)

    def cut(self, is_ending: bool = False) -> Batch:
        """The next batch; its state is told."""
        batch = self.writer.cut(is_ending)
        assert batch is not None
        self.state = LogState.read(batch.state.packed())
        return batch

    def write(self, is_ending: bool = False) -> None:
        """Write a batch."""
        batch = self.cut(is_ending)
        self.writer.write(batch, self.connection)
        self.writer.written(batch)

    def ids(self) -> list[str]:
        """The decision ids in the files."""
        files = [str(self.folder.path / segment.name) for segment in segments_of(self.folder.path)]
        query = f"SELECT decision_id FROM read_parquet({files}) ORDER BY time"  # noqa: S608
        return [id for (id,) in self.connection.execute(query).fetchall()] if files else []

    def missing(self) -> list[tuple[str, int, int]]:
        """Cause, allowed and refused of each span in the file."""
        return [(span.cause, span.allowed, span.refused) for span in read_missing(self.folder.path)]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[WriterOnAFolder]:
    """A writer on an empty folder."""
    scene = WriterOnAFolder(tmp_path)
    yield scene
    scene.connection.close()


def test_writer__writes_each_row_once(scene: WriterOnAFolder) -> None:
    """Batches are numbered; with nothing to write there is no batch."""
    worker = FrameSource()
    assert scene.writer.cut() is None
    scene.writer.receive(worker.frame(2))
    scene.writer.receive(worker.frame(1, is_allowed=False))
    scene.write()
    scene.writer.receive(worker.frame(1))
    scene.write()
    assert scene.writer.cut() is None
    assert scene.ids() == ["id1", "id2", "id3", "id4"]
    assert [(segment.first, segment.last) for segment in segments_of(scene.folder.path)] == [(1, 1), (2, 2)]
    assert scene.writer.totals == Totals(written=4)
    assert scene.missing() == []


def test_writer__a_killed_worker_leaves_a_count(scene: WriterOnAFolder) -> None:
    """The supervisor counts 5 and 3 decisions; 2 and 1 came as rows, 1 was dropped, 1 sampled away."""
    worker = FrameSource()
    scene.writer.receive(worker.frame(2))
    scene.writer.receive(worker.frame(1, is_allowed=False, dropped_allowed=1, sampled=1))
    scene.writer.receive(worker.ended(5, 3))
    scene.write(is_ending=True)
    assert sorted(scene.missing()) == [
        (Cause.BUFFER_FULL, 1, 0), (Cause.SAMPLED, 1, 0), (Cause.WORKER_ENDED, 1, 2),
    ]  # fmt: skip
    [lost] = [span for span in read_missing(scene.folder.path) if span.cause == Cause.WORKER_ENDED]
    assert (lost.from_us, lost.to_us, lost.worker) == (worker.now_us - 1_000_000, worker.now_us, 1)
    assert scene.writer.totals == Totals(written=3, dropped=1, lost=3, sampled=1)


def test_writer__a_clean_end_of_a_worker_is_no_loss(scene: WriterOnAFolder) -> None:
    """The counts agree, also for a worker that never sent a frame."""
    worker = FrameSource()
    scene.writer.receive(worker.frame(2))
    scene.writer.receive(worker.frame(1, is_allowed=False))
    scene.writer.receive(worker.ended(2, 1))
    scene.writer.receive(FrameSource("idle").ended(0, 0))
    scene.write()
    assert scene.missing() == []
    scene.writer.note_orphans(NOW_US)
    assert scene.writer.cut(is_ending=True) is None


def test_writer__killed_before_its_batch_is_written(scene: WriterOnAFolder) -> None:
    """The next writer finds out by the next frame what was lost, and that is told with its span."""
    worker = FrameSource()
    scene.writer.receive(worker.frame(1))
    scene.write()
    scene.writer.receive(worker.frame(2))
    scene.writer.receive(worker.frame(1, is_allowed=False))
    scene.cut()
    scene.writer.receive(worker.frame(1, is_allowed=False))
    scene.start()
    scene.writer.receive(worker.frame(1))
    scene.write()
    assert scene.ids() == ["id1", "id6"]
    assert scene.missing() == [(Cause.WRITER_ENDED, 2, 2)]
    [span] = read_missing(scene.folder.path)
    assert (span.from_us, span.to_us) == (NOW_US + 1_000_000, NOW_US + 6_000_000)
    assert scene.writer.totals == Totals(written=2, lost=4)


def test_writer__killed_after_its_batch_was_written(scene: WriterOnAFolder) -> None:
    """The file tells that the batch is complete: its rows are no loss, and its spans are not forgotten."""
    worker = FrameSource()
    scene.writer.receive(worker.frame(2, dropped_refused=7))
    batch = scene.cut()
    assert len(batch.state.spans) == 1
    rows_only = Batch(batch.state._replace(spans=[]), 2, batch.chunks, batch.segment)
    scene.writer.write(rows_only, scene.connection)
    scene.start()
    scene.writer.receive(worker.frame(1))
    scene.write()
    assert scene.ids() == ["id1", "id2", "id3"]
    assert scene.missing() == [(Cause.BUFFER_FULL, 0, 7)]
    assert scene.writer.totals == Totals(written=3, dropped=7)


def test_writer__killed_after_it_read_of_a_workers_end(scene: WriterOnAFolder) -> None:
    """The supervisor tells the end again: what was lost with both is counted, and counted once."""
    worker = FrameSource()
    scene.writer.receive(worker.frame(1))
    scene.write()
    ended = worker.ended(4, 0)
    scene.writer.receive(worker.frame(2))
    scene.writer.receive(ended)
    scene.cut()
    scene.start()
    scene.writer.receive(ended)
    scene.write()
    scene.writer.receive(ended)
    assert scene.writer.cut() is None
    assert scene.missing() == [(Cause.WORKER_ENDED, 3, 0)]
    assert scene.writer.totals == Totals(written=1, lost=3)


def test_writer__an_unclean_end_of_everything_leaves_a_span(tmp_path: Path) -> None:
    """After a power cut nobody knows how many rows are missing, but since when."""
    scene = WriterOnAFolder(tmp_path)
    scene.writer.receive(FrameSource().frame(1))
    scene.write()
    scene.state = None
    lock = scene.folder.path / "lock"
    mark = lock.read_text()
    scene.folder.close()
    lock.write_text(mark)
    scene.start()
    scene.write()
    now_us = NOW_US + 10**9
    expected = MissingSpan(now_us, now_us, -1, -1, -1, Cause.WRITER_ENDED, "box")
    assert read_missing(scene.folder.path) == [expected]
    scene.folder.close()
    assert LogFolder.open(tmp_path, "box", now_us).unclean is None
    scene.connection.close()


def test_writer__a_failed_batch_is_kept(scene: WriterOnAFolder) -> None:
    """A full disk: the rows are written with the next batch, each once."""
    worker = FrameSource()
    scene.writer.receive(worker.frame(2))
    scene.writer.failed(scene.cut())
    scene.writer.receive(worker.frame(1))
    scene.write()
    assert scene.ids() == ["id1", "id2", "id3"]
    assert scene.writer.totals == Totals(written=3)


def test_writer__a_full_disk_drops_the_oldest_allowed_rows(scene: WriterOnAFolder) -> None:
    """The buffer is bounded, the rows of a batch under way count, and what is dropped is told afterwards."""
    size = lines(1).size
    scene.writer.buffer = RowBuffer(bytes_max=3 * size + size // 2)
    worker = FrameSource()
    scene.writer.receive(worker.frame(1, is_allowed=False))
    scene.writer.receive(worker.frame(1))
    batch = scene.cut()
    for _ in range(4):
        scene.writer.receive(worker.frame(1))
    scene.writer.failed(batch)
    scene.write()
    ids = scene.ids()
    assert ids[0] == "id1"
    assert ids[-1] == "id6"
    assert sum(allowed for _, allowed, _ in scene.missing()) == 6 - len(ids) > 0
    assert scene.writer.totals == Totals(written=len(ids), dropped=6 - len(ids))
    assert {cause for cause, *_ in scene.missing()} <= {Cause.DISK, Cause.BUFFER_FULL}


def test_writer__the_clock_steps_back(scene: WriterOnAFolder) -> None:
    """Rows keep the time of their decision; names and spans go from the earlier to the later time."""
    worker = FrameSource()
    worker.second = 100
    scene.writer.receive(worker.frame(1))
    worker.second = 50
    scene.writer.receive(worker.frame(1, dropped_allowed=2))
    scene.write()
    assert scene.ids() == ["id51", "id101"]
    [segment] = segments_of(scene.folder.path)
    times = (NOW_US + 51_000_000, NOW_US + 101_000_000)
    assert (segment.from_us, segment.to_us) == times
    assert [(span.from_us, span.to_us) for span in read_missing(scene.folder.path)] == [times]


def test_writer__sampled_rows_are_told_once_an_hour(scene: WriterOnAFolder) -> None:
    """A line in the file for each batch would be too many."""
    worker = FrameSource()
    scene.writer.receive(worker.frame(1, sampled=2))
    scene.write()
    assert scene.missing() == []
    worker.second += 3_700
    scene.writer.receive(worker.frame(1, sampled=2))
    scene.write()
    assert scene.missing() == [(Cause.SAMPLED, 4, 0)]
    scene.writer.receive(worker.frame(1, sampled=1))
    scene.write(is_ending=True)
    assert scene.missing() == [(Cause.SAMPLED, 4, 0), (Cause.SAMPLED, 1, 0)]


def test_writer__masks_paths(tmp_path: Path) -> None:
    """Segments with personal data are not on the disk."""
    folder = LogFolder.open(tmp_path, "box", NOW_US)
    writer = LogWriter(folder, PathMasks(["/customers/*"]))
    writer.restore(None)
    row = lines(1, path="/customers/smith/orders?q=1")
    writer.receive(Frame(0, "w", NOW_US, NOW_US, Counts(1), row).packed())
    batch = writer.cut()
    assert batch is not None
    with connect(tmp_path) as connection:
        writer.write(batch, connection)
    [segment] = segments_of(folder.path)
    found = duckdb.sql(f"SELECT path FROM '{folder.path / segment.name}'").fetchall()  # noqa: S608
    assert found == [("/customers/*/orders",)]
    assert b"smith" not in (folder.path / segment.name).read_bytes()
    folder.close()


def test_writer__refuses_what_is_not_a_frame(scene: WriterOnAFolder) -> None:
    """A bug in a worker ends no writer."""
    with pytest.raises(ValueError, match="not a frame"):
        scene.writer.receive(b"\x00\x01")
