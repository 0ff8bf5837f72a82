"""Push a process reward model, a policy or labels to the Hugging Face Hub, with a card generated from the run.

SOURCE is the folder of a finished run, a model folder, or the Parquet file of mmprm labels. The token comes from
`hf auth login` or HF_TOKEN, the server from HF_ENDPOINT. Checkpoints, logs and samples are not pushed. Paths of this
machine are removed from a model's settings. If any remain, or a secret is found, the command ends before anything is
sent.

Examples:
  mmprm push runs/k12/train me/k12-prm --dry-run
  mmprm push runs/k12/train me/k12-prm --private
  mmprm push runs/rl me/k12-policy --update
  mmprm push runs/k12/labels.parquet me/k12-labels
"""

from __future__ import annotations

import argparse

from mmprm.hub.push import push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("source", metavar="SOURCE", help="run folder, model folder, or Parquet file of labels")
    parser.add_argument("repo", metavar="OWNER/NAME", help="repository on the Hub")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--private", action="store_true", help="create a private repository")
    target.add_argument("--update", action="store_true", help="commit to an existing repository")
    parser.add_argument("--dry-run", action="store_true", help="only write the card to card.md and list the files")


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm push`."""
    pushed = push(arguments.source, arguments.repo, arguments.private, arguments.update, arguments.dry_run)
    for name, size in pushed.files.items():
        print(f"{name}  {size:,} bytes")
    ends = "not pushed; the card is" if arguments.dry_run else "pushed:"
    print(f"{pushed.kind}, {len(pushed.files)} files, {sum(pushed.files.values()):,} bytes; {ends} {pushed.location}")
