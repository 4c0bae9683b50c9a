"""Publish a model folder, with its card, in a repository of the Hugging Face hub."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unfool.models.card import card_files, read_card
from unfool.results.export.every_eval_ever import MODEL_NAME
from unfool.results.export.model_card import license_of, own_readme, readme
from unfool.results.run_folder import Run
from unfool.runtime.optional import require


@dataclass(frozen=True)
class Upload:
    """The contents of an upload.

    Attributes:
        repository: `OWNER/NAME` on the hub.
        readme: The text of README.md.
        files: The other files.
    """

    repository: str
    readme: str
    files: tuple[Path, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes, by its name in the repository."""
        sizes = {path.name: path.stat().st_size for path in self.files}
        return {"README.md": len(self.readme.encode()), **sizes}


def prepare(
    folder: str, repository: str | None, license: str | None = None, runs: Sequence[Run] = ()
) -> Upload:
    """Collect what `push` would upload: the weights, `card.json`, and a README.md; nothing else.

    Args:
        folder: A folder with a card, or the name of a shipped model.
        repository: `OWNER/NAME`; for a dry run it may be None.
        license: A license identifier of the hub, such as `apache-2.0`; by default the card's.
        runs: Finished evaluations of the model for the README.md. An existing README.md is uploaded
            as it is.

    Raises:
        ValueError: There is no card, the weights do not match it, the repository is not named
            OWNER/NAME, or license or runs are given although a README.md exists.
        RuntimeError: A run is not finished, or is of another model.
    """
    home, card = read_card(folder)
    name = re.sub(r"[^\w.-]", "-", home.resolve().name)
    repository = repository or f"OWNER/{name}"
    if not MODEL_NAME.fullmatch(repository):
        raise ValueError(f"a repository must be named OWNER/NAME, not {repository!r}")
    text = own_readme(home)
    if text is not None and (license or runs):
        raise ValueError(
            f"{home / 'README.md'} already exists and would be uploaded as it is: delete it, or "
            "leave out --license and --run"
        )
    if text is None:
        text = readme(name, card, repository, license or card.get("license"), runs)
    return Upload(repository, text, card_files(home, card))


def push(upload: Upload, private: bool = False) -> str:
    """Upload in one commit. The repository is created if it does not exist.

    The token is the one of `hf auth login`, or `HF_TOKEN`.

    Returns:
        The address of the commit.

    Raises:
        ValueError: huggingface_hub is not installed, or the token, the owner, or the license is
            missing.
        RuntimeError: The hub refused the upload, or cannot be reached.
    """
    hub = require("huggingface_hub", "hub")
    if upload.repository.startswith("OWNER/"):
        raise ValueError("--push needs a repository: add --repo OWNER/NAME")
    if license_of(upload.readme) is None:
        raise ValueError("--push needs a license: add --license, such as --license apache-2.0")
    if hub.get_token() is None:
        raise ValueError("--push needs a token of the hub: run `hf auth login`, or set HF_TOKEN")
    api, add = hub.HfApi(library_name="unfool"), hub.CommitOperationAdd
    operations = [add("README.md", upload.readme.encode())]
    operations += [add(path.name, str(path)) for path in upload.files]
    try:
        api.create_repo(upload.repository, private=private, exist_ok=True)
        commit = api.create_commit(
            upload.repository, operations, commit_message="Publish with unfool", revision="main"
        )
    except Exception as error:  # the hub, the network, and the files raise different classes
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RuntimeError(f"{upload.repository} was not published: {reason}") from error
    return str(commit.commit_url)
