import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http

import qwen3_nano
from onnx_exports import feed as padded_feed
from onnx_exports import masks
from onnx_session import open_session
from polling import wait_for
from qwen3_nano.graph import build_graph
from qwen3_nano.weights import load_weights
from qwen3_triton_gateway.backends.address import TritonAddress
from qwen3_triton_gateway.backends.refusals import translate
from qwen3_triton_gateway.errors import InsufficientMemoryError
from qwen3_triton_gateway.pooling import last_token_pool
from qwen3_triton_tools.local_triton import (
    LaunchError,
    LocalTriton,
    ModelFolderError,
    PortInUseError,
    TritonRuntime,
    ensure_runtime,
    launch,
    unsupported_reason,
    write_repository,
)
from qwen3_triton_tools.local_triton.process import Ports, choose_ports, free_ports
from qwen3_triton_tools.local_triton.runtime import _digest

pytestmark = pytest.mark.stack

MAX_BATCH_SIZE = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float16": {"float16_output": True},
    "pooled": {"output": "sentence_embedding"},
    "past": {"past_key_values": True},
    "no_positions": {"position_ids": False},
}

# The first has float16 states, the second a mask that may cover a past.
POOLED_IN_TRITON = ("float16", "past")

Arrays = dict[str, np.ndarray]


@pytest.fixture(name="runtime", scope="module")
def _runtime() -> TritonRuntime:
    assert unsupported_reason() is None
    return ensure_runtime(print)


@pytest.fixture(name="graphs", scope="module")
def _graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model folder for each shape that exports come in."""
    folder = tmp_path_factory.mktemp("graphs")
    weights = load_weights(qwen3_nano.model_dir() / "model.onnx")
    for name, options in VARIANTS.items():
        (folder / name).mkdir()
        onnx.save(build_graph(weights, **options), folder / name / "model.onnx")
    return folder


@pytest.fixture(name="triton", scope="module")
def _triton(
    runtime: TritonRuntime, graphs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalTriton]:
    repository = tmp_path_factory.mktemp("repository")
    for name in VARIANTS:
        write_repository(
            graphs / name,
            repository,
            model_name=name,
            max_batch_size=MAX_BATCH_SIZE,
            intra_op_threads=1,
        )
    for name in POOLED_IN_TRITON:
        write_repository(
            graphs / name,
            repository,
            model_name=f"pooled_{name}",
            max_batch_size=MAX_BATCH_SIZE,
            intra_op_threads=1,
            pooled_output="last_hidden_state",
        )
    with LocalTriton(model_repository=repository, runtime=runtime) as server:
        yield server


@functools.cache
def session(graphs: Path, name: str) -> onnxruntime.InferenceSession:
    return open_session(graphs / name / "model.onnx")


def feed(model: onnxruntime.InferenceSession, batch: int, length: int) -> Arrays:
    rows: dict[str, np.ndarray] = {
        "input_ids": np.random.default_rng(length).integers(0, 1000, (batch, length)),
        "attention_mask": np.ones((batch, length), dtype=np.int64),
        "position_ids": np.tile(np.arange(length), (batch, 1)),
    }
    return {
        entry.name: rows[entry.name]
        if entry.name in rows
        else np.zeros((batch, entry.shape[1], 0, entry.shape[3]), dtype=np.float32)
        for entry in model.get_inputs()
    }


def client_of(protocol: ModuleType, server: LocalTriton) -> Any:
    url = server.http_url if protocol is tritonclient.http else server.grpc_url
    return protocol.InferenceServerClient(url.partition("://")[2])


def infer(protocol: ModuleType, server: LocalTriton, model: str, arrays: Arrays, **options: Any):
    """Send one request with Triton's own client and return the one output."""
    inputs = []
    for name, array in arrays.items():
        kind = "INT64" if array.dtype == np.int64 else "FP32"
        inputs.append(protocol.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    with client_of(protocol, server) as client:
        answer = client.infer(model, inputs, **options)
        output = "sentence_embedding" if "pooled" in model else "last_hidden_state"
        return answer.as_numpy(output)


def is_running(pid: int) -> bool:
    """Return whether `pid` is alive; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def stub_of(server: LocalTriton) -> int:
    """Return the process that runs the server's only model."""
    tasks = Path(f"/proc/{server.pid}/task").glob("*/children")
    [stub] = [int(child) for children in tasks for child in children.read_text().split()]
    return stub


both_protocols = pytest.mark.parametrize(
    "protocol",
    [pytest.param(tritonclient.http, id="http"), pytest.param(tritonclient.grpc, id="grpc")],
)


@both_protocols
@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_equal_onnxruntimes_own(
    triton: LocalTriton, graphs: Path, protocol: ModuleType, variant: str
) -> None:
    model = session(graphs, variant)
    for batch, length in ((1, 1), (3, 7), (MAX_BATCH_SIZE, 64), (2, 300)):
        arrays = feed(model, batch, length)
        [expected] = model.run(None, arrays)
        answer = infer(protocol, triton, variant, arrays)
        assert answer.dtype == expected.dtype
        tolerance = 1e-5 if answer.dtype == np.float32 else 1e-2
        np.testing.assert_allclose(answer, expected, rtol=tolerance, atol=tolerance)
    assert "Traceback" not in triton.log_file.read_text()


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("padding", masks())
@pytest.mark.parametrize("variant", POOLED_IN_TRITON)
def test_states_pooled_in_triton_are_those_of_pooling_outside(
    triton: LocalTriton, graphs: Path, *, variant: str, padding: str, past: int
) -> None:
    model = session(graphs, variant)
    mask = masks()[padding]
    arrays = padded_feed(model, mask, past if variant == "past" else 0)
    [states] = model.run(None, arrays)
    answer = infer(tritonclient.grpc, triton, f"pooled_{variant}", arrays)
    assert answer.dtype == states.dtype
    tolerance = 1e-5 if answer.dtype == np.float32 else 1e-2
    expected = last_token_pool(states, mask)
    np.testing.assert_allclose(answer, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_metadata_has_the_graphs_names_types_and_shapes(
    triton: LocalTriton, graphs: Path, variant: str
) -> None:
    types = {"tensor(int64)": "INT64", "tensor(float)": "FP32", "tensor(float16)": "FP16"}
    model = session(graphs, variant)
    with client_of(tritonclient.http, triton) as client:
        metadata = client.get_model_metadata(variant)
        config = client.get_model_config(variant)
    assert metadata["outputs"].pop() == {
        "name": "answer_checksum",
        "datatype": "INT64",
        "shape": [-1, 1],
    }
    for role, entries in (("inputs", model.get_inputs()), ("outputs", model.get_outputs())):
        expected = [
            (e.name, types[e.type], [d if isinstance(d, int) else -1 for d in e.shape])
            for e in entries
        ]
        assert [(t["name"], t["datatype"], t["shape"]) for t in metadata[role]] == expected
    assert config["max_batch_size"] == MAX_BATCH_SIZE


@both_protocols
def test_a_batch_above_the_limit_is_a_client_error(
    triton: LocalTriton, graphs: Path, protocol: ModuleType
) -> None:
    arrays = feed(session(graphs, "plain"), MAX_BATCH_SIZE + 1, 4)
    with pytest.raises(
        tritonclient.http.InferenceServerException, match=r"batch-size must be <= 8"
    ) as caught:
        infer(protocol, triton, "plain", arrays)
    assert caught.value.status() in {"400", "StatusCode.INVALID_ARGUMENT"}


def test_requests_of_equal_shape_share_runs_and_a_bad_one_fails_alone(
    triton: LocalTriton, graphs: Path
) -> None:
    model = session(graphs, "pooled")
    good = feed(model, 1, 200)
    bad = good | {"input_ids": np.full((1, 200), 10**6)}
    [expected] = model.run(None, good)

    def ask(index: int) -> np.ndarray | str:
        try:
            return infer(tritonclient.grpc, triton, "pooled", bad if index % 8 == 0 else good)
        except tritonclient.grpc.InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(48)))
    for index, answer in enumerate(answers):
        if index % 8 == 0:
            assert "ONNX Runtime could not run the model" in str(answer)
        else:
            np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4)
    with client_of(tritonclient.http, triton) as client:
        [statistics] = client.get_inference_statistics("pooled")["model_stats"]
    assert statistics["execution_count"] < statistics["inference_count"]


def test_a_text_that_does_not_fit_into_memory_is_refused(triton: LocalTriton) -> None:
    ids = np.full((1, 1 << 20), 7)
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": ids}
    with pytest.raises(tritonclient.http.InferenceServerException) as caught:
        infer(tritonclient.http, triton, "plain", arrays)
    refused = translate(caught.value, TritonAddress.parse("http://localhost:8000"))
    assert isinstance(refused, InsufficientMemoryError)
    assert refused.message.startswith("A text of 1,048,576 tokens takes about ")


def test_the_batcher_has_no_policy_that_leaves_batches_idle(graphs: Path, tmp_path: Path) -> None:
    """Triton 2.51 loses wake-ups with any of these: batches are then idle for half a second."""
    folder = write_repository(graphs / "plain", tmp_path, model_name="plain")
    config = (folder / "config.pbtxt").read_text()
    assert "dynamic_batching" in config
    for policy in ("priority_levels", "queue_policy", "max_queue_size", "preferred_batch_size"):
        assert f"{policy}:" not in config
        assert f"{policy} {{" not in config


def test_administrative_calls_are_closed(triton: LocalTriton) -> None:
    with client_of(tritonclient.http, triton) as client:
        for call in (client.get_log_settings, client.get_system_shared_memory_status):
            with pytest.raises(tritonclient.http.InferenceServerException, match="restricted"):
                call()


def test_two_servers_answer_at_once_and_a_killed_one_comes_back_on_its_ports(
    triton: LocalTriton, runtime: TritonRuntime, graphs: Path
) -> None:
    model = session(graphs, "plain")
    arrays = feed(model, 2, 9)
    [expected] = model.run(None, arrays)
    with LocalTriton(model_dir=graphs / "plain", model_name="plain", runtime=runtime) as other:
        for server in (triton, other, triton, other):
            answer = infer(tritonclient.http, server, "plain", arrays)
            np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)
        addresses, pid = (other.http_url, other.grpc_url, other.metrics_url), other.pid
        os.kill(pid, signal.SIGKILL)
        assert other.wait(60) == 128 + signal.SIGKILL
        assert not list(Path("/dev/shm").glob(f"qwen3triton{os.getpid()}x*{pid}*"))
        other.start()
        other.wait_ready(60)
        assert (other.http_url, other.grpc_url, other.metrics_url) == addresses
        assert other.pid != pid
        answer = infer(tritonclient.grpc, other, "plain", arrays)
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)
        # Triton alone would go on calling itself ready without the process that runs the model, and
        # mix up the answers of one that was paused.
        for fault, reason in ((signal.SIGKILL, "process died"), (signal.SIGSTOP, "got no CPU")):
            os.kill(stub_of(other), fault)
            assert other.wait(60) == 128 + signal.SIGKILL
            assert reason in other.end_reason
            other.start()
            other.wait_ready(60)
            assert not other.end_reason
        os.kill(other.pid, signal.SIGSTOP)
    # A stopped server, too, is gone when the block ends.
    with pytest.raises(LaunchError, match="not started"):
        _ = other.pid


def test_foreground_reports_and_ends_well_and_the_parents_death_ends_triton(
    runtime: TritonRuntime, graphs: Path, tmp_path: Path
) -> None:
    script = tmp_path / "serve.py"
    script.write_text(f"""
import json, os, sys
from pathlib import Path
from qwen3_triton_tools.local_triton import LocalTriton, TritonRuntime, run_foreground
triton = LocalTriton(model_dir=Path({str(graphs / "plain")!r}),
                     runtime=TritonRuntime(Path({str(runtime.folder)!r})))
def ready(triton):
    print(json.dumps([triton.pid, str(triton.log_file), os.getpid()]), flush=True)
sys.exit(run_foreground(triton, on_ready=ready))
""")

    def serve() -> tuple[subprocess.Popen[bytes], int, Path]:
        process = subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        pid, log, _ = json.loads(process.stdout.readline())
        return process, pid, Path(log)

    for sent, status in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        process, pid, log = serve()
        assert is_running(pid)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == status
        assert b"Started HTTPService" in errors or sent == signal.SIGKILL
        wait_for(lambda pid=pid: not is_running(pid), "Triton ends")
        wait_for(lambda log=log: not log.parent.exists(), "its folder is removed")
        memory = Path("/dev/shm").glob
        names = f"qwen3triton{process.pid}x*"
        wait_for(lambda glob=memory, names=names: not list(glob(names)), "its memory is removed")


@pytest.mark.parametrize("host", ["::1", "::"])
def test_it_listens_on_an_ipv6_address(graphs: Path, host: str) -> None:
    with LocalTriton(model_dir=graphs / "plain", model_name="plain", host=host) as triton:
        assert triton.http_url.startswith("http://[::1]:")
        for protocol in (tritonclient.http, tritonclient.grpc):
            with client_of(protocol, triton) as client:
                assert client.is_model_ready("plain")


def test_a_taken_port_is_named(runtime: TritonRuntime, graphs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = LocalTriton(model_dir=graphs / "plain", grpc_port=port, runtime=runtime)
        with pytest.raises(PortInUseError, match=rf"Port {port} \(`grpc-port`\)"):
            server.start()


def test_no_outgoing_connection_takes_a_free_port() -> None:
    kernel = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    outgoing = range(int(kernel[0]), int(kernel[1]) + 1)
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert not set(ports) & set(outgoing)
    chosen = choose_ports("127.0.0.1", Ports(0, ports[0], 0))
    assert chosen.grpc == ports[0]
    assert not {chosen.http, chosen.metrics} & set(outgoing)


def test_a_port_taken_during_the_start_is_replaced_unless_it_was_asked_for(
    runtime: TritonRuntime, graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def choose_taken(host: str, wanted: Ports, **options: Any) -> Ports:
            """Choose the taken port, as if it were still free; the next time, as always."""
            monkeypatch.setattr(launch, "choose_ports", choose_ports)
            chosen = choose_ports(host, replace(wanted, http=0), **options)
            return replace(chosen, http=port)

        monkeypatch.setattr(launch, "choose_ports", choose_taken)
        with LocalTriton(model_dir=graphs / "plain", runtime=runtime) as server:
            assert not server.http_url.endswith(f":{port}")
        monkeypatch.setattr(launch, "choose_ports", choose_taken)
        server = LocalTriton(model_dir=graphs / "plain", http_port=port, runtime=runtime)
        with pytest.raises(PortInUseError, match=rf"Port {port} \(`http-port`\)"), server:
            pass


def test_a_model_that_does_not_load_shows_the_log(
    runtime: TritonRuntime, graphs: Path, tmp_path: Path
) -> None:
    for folder in ("data_missing", "pointer", "empty", "unknown_operator"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pointer" / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1")
    onnx.save(
        onnx.load(graphs / "plain" / "model.onnx"),
        tmp_path / "data_missing" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
    )
    (tmp_path / "data_missing" / "model.onnx_data").unlink()
    model = onnx.load(graphs / "plain" / "model.onnx")
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "unknown_operator" / "model.onnx")
    for folder, error, message in (
        ("empty", ModelFolderError, "has no ONNX file"),
        ("pointer", ModelFolderError, r"is not an ONNX model but a Git LFS pointer"),
        ("data_missing", ModelFolderError, r"has weights in .*model\.onnx_data', which is missing"),
        ("unknown_operator", LaunchError, r"(?s)The end of its log.*NoSuchOperator"),
    ):
        server = LocalTriton(model_dir=tmp_path / folder, runtime=runtime)
        with pytest.raises(error, match=message), server:
            pass


def test_folders_may_have_any_name(
    runtime: TritonRuntime, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "my $(id) folder's"
    write_repository(graphs / "plain", odd / "repository", model_name="plain")
    (odd / "runtime").symlink_to(runtime.folder)
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    with LocalTriton(
        model_repository=odd / "repository", runtime=TritonRuntime(odd / "runtime")
    ) as server:
        assert infer(tritonclient.http, server, "plain", feed(session(graphs, "plain"), 1, 3)).any()


def test_a_log_without_space_ends_the_start_instead_of_its_time(
    runtime: TritonRuntime, graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    server = LocalTriton(model_dir=graphs / "plain", runtime=runtime)
    with pytest.raises(LaunchError, match=r"the disk of .* is full"), server:
        pass


def test_two_processes_may_install_the_runtime_at_once_over_what_a_killed_one_has_left(
    tmp_path: Path,
) -> None:
    name = f"triton-{_digest()}"
    (tmp_path / f".installing-{name}-left").mkdir()
    TritonRuntime(tmp_path / name).packages.mkdir(parents=True)  # a part of it was removed
    code = "from qwen3_triton_tools.local_triton import ensure_runtime as e; print(e(print).folder)"
    environment = os.environ | {"QWEN3_TRITON_RUNTIME_DIR": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    folders = {process.communicate(timeout=280)[0].split()[-1].decode() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    [folder] = folders
    assert TritonRuntime(Path(folder)).server.is_file()
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == [Path(folder).name]
