"""The Hugging Face hub, through its own library: list a repository, fetch a file."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_triton_gateway.model_files import describe_os_error, remedy_of

from ..errors import ModelError

KNOWN_REPOS = (
    "zhiqing/Qwen3-Embedding-0.6B-ONNX",
    "zhiqing/Qwen3-Embedding-4B-ONNX",
    "onnx-community/Qwen3-Embedding-0.6B-ONNX",
    "onnx-community/Qwen3-Embedding-4B-ONNX",
    "onnx-community/Qwen3-Embedding-8B-ONNX",
    "Qdrant/Qwen3-Embedding-0.6B-onnx",
    "onnx-community/Qwen3-Reranker-0.6B-ONNX",
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, with the digest that the hub has for it.

    Attributes:
        sha256: Digest of a file in large storage.
        blob_id: Git's own digest of any other.
    """

    path: str
    size_bytes: int
    sha256: str | None
    blob_id: str | None

    def matches(self, path: Path) -> bool:
        """Return whether a local file is this one, byte for byte."""
        if not path.is_file() or path.stat().st_size != self.size_bytes:
            return False
        if self.sha256 is not None:
            return file_sha256(path) == self.sha256
        return self.blob_id is None or _git_blob_id(path) == self.blob_id


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository at one commit."""

    name: str
    commit: str
    files: tuple[HubFile, ...]

    def find(self, path: str) -> HubFile | None:
        return next((file for file in self.files if file.path == path), None)


def list_repo(repo: str, *, revision: str | None, endpoint: str | None) -> HubRepo:
    """List the files of a repository at a revision.

    Raises:
        ModelError: The library is missing, the hub cannot be reached, or the repository or
            revision does not exist or may not be read.
    """
    with _hub_errors(repo, revision) as hub:
        api = hub.HfApi(endpoint=endpoint)
        info: Any = api.model_info(repo, revision=revision, files_metadata=True)
    siblings: list[Any] = info.siblings or []
    files = [_hub_file(sibling) for sibling in siblings]
    return HubRepo(repo, str(info.sha), tuple(files))


def fetch_file(repo: HubRepo, file: HubFile, target: Path, *, endpoint: str | None) -> None:
    """Fetch one file, resuming an interrupted download of it, and compare its digest.

    The library resumes within a run, but drops an unfinished file at its end; so the bytes are kept
    here, under a name that contains their digest.

    Raises:
        ModelError: The file cannot be fetched, or its digest is not the hub's.
    """
    partial = partial_path(target, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_file() and partial.stat().st_size > file.size_bytes:
        partial.unlink()
    with _hub_errors(repo.name, repo.commit) as hub, partial.open("ab") as output:
        # Imported by name, since their types are partially unknown.
        download: Any = importlib.import_module("huggingface_hub.file_download")
        utils: Any = importlib.import_module("huggingface_hub.utils")
        url = hub.hf_hub_url(repo.name, file.path, revision=repo.commit, endpoint=endpoint)
        headers = utils.build_hf_headers() | {"accept-encoding": "identity"}
        download.http_get(
            url,
            output,
            resume_size=partial.stat().st_size,
            headers=headers,
            expected_size=file.size_bytes,
            displayed_filename=file.path,
        )
    if not file.matches(partial):
        partial.unlink()
        msg = (
            f"{file.path} of {repo.name} has another checksum than on the hub, and was deleted. "
            "Run the command again; if that does not help, a proxy or mirror changes files."
        )
        raise ModelError(msg)
    partial.replace(target)


def partial_path(target: Path, file: HubFile) -> Path:
    """Return where the bytes fetched so far are kept; other content has another name."""
    digest = file.sha256 or file.blob_id or "unknown"
    return target.with_name(f".{target.name}.{digest[:12]}.incomplete")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hub_file(sibling: Any) -> HubFile:
    lfs = sibling.lfs
    return HubFile(
        path=sibling.rfilename,
        size_bytes=lfs.size if lfs else sibling.size or 0,
        sha256=lfs.sha256 if lfs else None,
        blob_id=None if lfs else sibling.blob_id,
    )


def _git_blob_id(path: Path) -> str:
    """Compute the name of a file's blob in git.

    https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    """
    content = path.read_bytes()
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Generator[Any]:
    """Yield the library, and turn its errors into messages that say what to do."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        yield hub
    except errors.HFValidationError as error:
        msg = f"{repo!r} is not the name of a repository, such as {KNOWN_REPOS[0]}: {error}"
        raise ModelError(msg) from None
    except errors.GatedRepoError:
        msg = (
            f"{repo} is gated. Accept its terms at https://huggingface.co/{repo}, log in with "
            "`hf auth login` or set HF_TOKEN, and run the command again."
        )
        raise ModelError(msg) from None
    except errors.RevisionNotFoundError:
        msg = f"{repo} has no revision {revision!r}. Omit --revision to fetch the newest."
        raise ModelError(msg) from None
    except errors.RepositoryNotFoundError:
        msg = (
            f"The hub has no repository {repo}, or does not show it. Check the name, or log in "
            f"with `hf auth login` if it is private. Known exports: {', '.join(KNOWN_REPOS)}."
        )
        raise ModelError(msg) from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise ModelError(_failure(repo, error)) from None
    except Exception as error:
        # The library passes on the errors of its HTTP client, which has changed before.
        if not _is_transport_error(error):
            raise
        raise ModelError(_failure(repo, error)) from None


def _is_transport_error(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in {"httpx2", "httpx", "requests", "httpcore"}


def _failure(repo: str, error: Exception) -> str:
    if isinstance(error, OSError) and remedy_of(error):  # about a file, not about the hub
        return (
            f"Fetching {repo} failed: {describe_os_error(error)} Then run the command again to "
            "resume where it stopped."
        )
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return (
        f"Fetching {repo} failed: {reason}. Run the command again to resume where it stopped; "
        "HF_ENDPOINT selects another hub, HTTPS_PROXY a proxy."
    )
