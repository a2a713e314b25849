"""The interface of gloo and NCCL is the one with the route to rank 0, unless the user has named one."""

import socket

import pytest

from tunesmith.training.distributed import network
from tunesmith.training.distributed.network import GLOO, NCCL, interface_to, set_interfaces


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (GLOO, NCCL):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)


def test_loopback_and_unknown_hosts_have_no_interface():
    assert interface_to("127.0.0.1") is None
    assert interface_to("no.such.host.invalid") is None


def test_the_interface_of_an_own_address_is_found():
    addresses = {name: network._address_of(name) for _, name in socket.if_nameindex()}
    own = {name: address for name, address in addresses.items() if address and not address.startswith("127.")}
    if not own:
        pytest.skip("this machine has no network")
    for name, address in own.items():
        assert interface_to(address) == name


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {GLOO: "eth7", NCCL: "eth7"}),
        ({GLOO: "ib0"}, {GLOO: "ib0", NCCL: "ib0"}),
        ({NCCL: "=ib1"}, {GLOO: "ib1", NCCL: "=ib1"}),  # NCCL's prefixes are no part of a name
        ({GLOO: "eth0", NCCL: "ib0"}, {GLOO: "eth0", NCCL: "ib0"}),
    ],
)
def test_what_the_user_names_is_kept_and_used_for_both(monkeypatch, given, expected):
    monkeypatch.setattr(network, "interface_to", lambda address: "eth7" if address == "10.0.0.1" else None)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    set_interfaces("10.0.0.1")
    assert {name: network.os.environ[name] for name in (GLOO, NCCL)} == expected


def test_ranks_on_one_machine_choose_themselves(monkeypatch):
    set_interfaces("127.0.0.1")
    assert not {GLOO, NCCL} & network.os.environ.keys()


def test_an_excluding_choice_of_nccl_names_no_interface_for_gloo(monkeypatch):
    monkeypatch.setattr(network, "interface_to", lambda address: "eth7")
    monkeypatch.setenv(NCCL, "^docker0,lo")
    set_interfaces("10.0.0.1")
    assert network.os.environ[NCCL] == "^docker0,lo"
    assert network.os.environ[GLOO] == "eth7"
