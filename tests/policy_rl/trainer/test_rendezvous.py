"""Test the address at which the trainer's ranks meet."""

from __future__ import annotations

import socket

import pytest

from policy_rl.trainer.group import _Rank


def test_only_the_ranks_store_can_take_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    rank = _Rank()
    host, port = rank.address()
    for address in ("", host):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((address, port))
        with socket.socket() as store:
            store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            store.bind((address, port))
            store.listen()
