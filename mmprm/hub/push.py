"""Push a PRM, a policy or labels with a card to the Hugging Face Hub in one commit, or do a dry run."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.errors import ConfigError, MmprmError, SetupError
from mmprm.files import whole_file
from mmprm.hub.artifact import ArtifactKind, read_artifact
from mmprm.hub.card import card_text, license_of

CARD = "README.md"
DRY_CARD = "card.md"


class HubError(MmprmError):
    """Raised when the Hub cannot be reached or rejects a request."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """Describes the files that were pushed, or would be in a dry run. `files` maps names in the repository to sizes in
    bytes.

    `location` is the URL of the commit, or the path of the card in a dry run.
    """

    kind: ArtifactKind
    files: dict[str, int]
    location: str


def push(source: str | Path, repo: str, private: bool = False, update: bool = False, dry_run: bool = False) -> Pushed:
    """Push the artifact in `source` to the repository `repo` on the Hub at HF_ENDPOINT.

    Args:
        source: Folder of a finished run, a model folder, or the Parquet file of mmprm labels.
        repo: Repository, owner/name.
        private: Create a private repository.
        update: Commit to an existing repository instead of creating one.
        dry_run: Use no network; write the card to card.md in the folder of `source`.

    Raises:
        ConfigError: `source` holds nothing to push or something private, or `repo` is not valid.
        SetupError: No access token is stored on this machine, or the Hub is switched off.
        HubError: The Hub cannot be reached, or rejects the request.
    """
    _check_repo(repo)
    source = Path(source)
    if not source.exists():
        raise ConfigError(f"{source}: does not exist; give the folder of a run, a model folder or a Parquet file")
    api = None if dry_run else _open_hub()
    with tempfile.TemporaryDirectory() as temporary:
        artifact = read_artifact(source, Path(temporary))
        license_of_base = license_of(artifact.base_folder) or _license_on_hub(api, artifact.base)
        card = card_text(artifact, repo, license_of_base)
        files = {**artifact.files, CARD: card.encode()}
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in sorted(files.items())
        }
        if api is None:
            location = (source if source.is_dir() else source.parent) / DRY_CARD
            with whole_file(location) as file:
                file.write(card)
            return Pushed(artifact.kind, sizes, str(location))
        location = _commit(api, repo, artifact.repo_type, files, private, update)
    return Pushed(artifact.kind, sizes, location)


def _check_repo(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        if repo.count("/") != 1:
            raise HFValidationError("it must have the form owner/name")
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is not the name of a repository: {error}; give, for example, me/my-prm") from error


def _open_hub() -> Any:
    """Create a Hub client; raise SetupError if there is no access token or HF_HUB_OFFLINE is set."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise SetupError("HF_HUB_OFFLINE=1 switches the Hub off; unset it, or use --dry-run")
    if get_token() is None:
        raise SetupError(
            "no access token of the Hub is stored here; run `hf auth login` or set HF_TOKEN to a token with write "
            "permission, or use --dry-run"
        )
    return HfApi()


def _license_on_hub(api: Any, base: str) -> dict[str, str]:
    """Return the license fields of the base model's card on the Hub, or {} if the card is not available."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    if not base:
        return {}
    cached = try_to_load_from_cache(base, CARD)
    if isinstance(cached, str):
        return license_of(Path(cached).parent)
    if api is None:
        return {}
    with contextlib.suppress(HTTPError, OSError, ValueError):
        data = api.model_info(base).card_data
        stated = {} if data is None else data.to_dict()
        names = ("license", "license_name", "license_link")
        return {name: str(stated[name]) for name in names if stated.get(name)}
    return {}


def _commit(api: Any, repo: str, repo_type: str, files: dict[str, Path | bytes], private: bool, update: bool) -> str:
    from huggingface_hub import CommitOperationAdd

    if not update:
        with _hub_errors(api, repo):
            api.create_repo(repo, repo_type=repo_type, private=private or None)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    with _hub_errors(api, repo):
        pushed = api.create_commit(repo, operations, commit_message="Push with mmprm", repo_type=repo_type)
    return str(pushed.commit_url)


_WAYS_OUT = {
    400: "correct what it names",
    401: "the token is not valid; run `hf auth login`, or set HF_TOKEN to a valid token",
    403: "the token has no permission to write there; use a token with write permission, or a name under your own "
    "account or organization",
    404: "it does not exist, or the token cannot see it; leave out --update to create it",
    409: "the name is taken; use --update to commit to that repository, or choose another name",
    429: "too many requests; wait and push again with --update",
}


@contextlib.contextmanager
def _hub_errors(api: Any, repo: str) -> Iterator[None]:
    """Convert the errors of huggingface_hub to HubError, adding advice on how to fix them."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or f"status {status}"
        way_out = _WAYS_OUT.get(status, "push again later, with --update if the repository was created")
        raise HubError(f"{repo}: {api.endpoint} refuses ({said}): {way_out}") from error
    except (HTTPError, OSError) as error:
        raise HubError(
            f"{repo}: {api.endpoint} cannot be reached ({error or type(error).__name__}); check the network, "
            "HTTPS_PROXY and HF_ENDPOINT, then push again, with --update if the repository was created"
        ) from error
    except ValueError as error:  # huggingface_hub validates the card and the storage server's responses
        raise HubError(f"{repo}: {error}; push again, with --update if the repository was created") from error
