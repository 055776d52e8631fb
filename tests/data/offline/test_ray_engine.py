"""Tasks of a Ray cluster of two nodes on this machine: equal bytes, also when a node is lost."""

from __future__ import annotations

import threading
import time

import pytest

from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.data.offline.outputs import OfflineError
from svilm_fast.data.offline.work import Unit, do_work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(toy):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # A developer API of Ray: every node has a process of its own and one core.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    try:
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


def _start(toy, folder, engine, units, sleep_s=0.0):
    folder.mkdir(exist_ok=True)
    return do_work(
        "toy",
        toy.write_two,
        units,
        {"sleep_s": sleep_s},
        folder,
        parameters={},
        engine=engine,
    )


def test_a_node_is_lost_in_the_middle(cluster, toy, content, tmp_path):
    nodes, second = cluster
    units = toy.units(16)
    reports = _start(toy, tmp_path / "local", OfflineEngine.LOCAL, units)
    expected = content(tmp_path / "local")
    lost = threading.Event()

    def lose_a_node() -> None:
        while len(list((tmp_path / "ray").glob("*.bin"))) < 4:
            time.sleep(0.05)
        nodes.remove_node(second, allow_graceful=False)
        lost.set()

    (tmp_path / "ray").mkdir()
    thread = threading.Thread(target=lose_a_node)
    thread.start()
    assert _start(toy, tmp_path / "ray", OfflineEngine.RAY, units, sleep_s=0.3) == reports
    thread.join()
    assert lost.is_set()
    assert content(tmp_path / "ray") == expected
    # What the local engine finds of the other engine's work, it keeps.
    before = {path.name: path.stat().st_ino for path in (tmp_path / "ray").iterdir()}
    _start(toy, tmp_path / "ray", OfflineEngine.LOCAL, units)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "ray").iterdir()} == before


def test_packing_gives_the_bytes_of_the_local_engine(cluster, tmp_path, videos):
    from svilm_fast.data.pack import pack

    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.mp4").write_bytes(videos[number % 4])
        (folder / f"{number}.txt").write_text(f"Dog {number} runs.")
    (folder / "bad.mp4").write_bytes(b"no video" * 9)
    (folder / "bad.txt").write_text("Bad.")
    shards = {}
    for engine in OfflineEngine:
        out = tmp_path / engine
        assert pack(str(folder), out, shard_samples=2, engine=engine).written == 5
        shards[engine] = {
            path.name: path.read_bytes()
            for path in out.iterdir()
            if path.name != "pack_manifest.jsonl"
        }
    assert len(shards[OfflineEngine.LOCAL]) == 7
    assert shards[OfflineEngine.LOCAL] == shards[OfflineEngine.RAY]


def test_indexing_gives_the_bytes_of_the_local_engine(cluster, tmp_path):
    from svilm_fast.data.index.build import BuildEngine
    from svilm_fast.data.index.commands import index
    from svilm_fast.data.shards import ShardWriter

    with ShardWriter(tmp_path, max_samples=2) as writer:
        for number in range(11):
            writer.write(f"s{number}", {"mp4": b"video", "txt": f"Dog {number} runs.".encode()})
    found = {}
    for engine in OfflineEngine:
        index([str(tmp_path)], {}, nouns=True, engine=BuildEngine(engine))
        (path,) = tmp_path.glob(".svilm-index-*")
        found[engine] = path.read_bytes()
        path.unlink()
    assert found[OfflineEngine.LOCAL] == found[OfflineEngine.RAY]


def test_errors_of_tasks_and_dead_tasks_name_the_unit(cluster, toy, tmp_path):
    with pytest.raises(ValueError, match="bad is refused"):
        _start(toy, tmp_path / "a", OfflineEngine.RAY, [Unit("bad", "refuse", 1)])
    with pytest.raises(OfflineError, match="Ray gave up on died"):
        _start(toy, tmp_path / "b", OfflineEngine.RAY, [Unit("died", "die", 1)])
