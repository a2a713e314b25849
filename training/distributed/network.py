"""The network interface of gloo and NCCL: the one by which this host reaches rank 0.

Both choose one themselves otherwise, gloo by the host's own name and NCCL by the order of interfaces: on hosts with
several networks (management, containers, storage) they may choose one that the other hosts cannot reach.
"""

import fcntl
import os
import socket
import struct

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915
"""Linux: the IPv4 address of an interface (netdevice(7))."""


def set_interfaces(address: str) -> None:
    """Set the variables of both libraries before they start. address: MASTER_ADDR.

    What the user has set is kept, and used for the other library too. Nothing is set for ranks on one machine
    (loopback), or if the interface cannot be determined.
    """
    gloo, nccl = os.environ.get(GLOO), os.environ.get(NCCL)
    if not gloo:  # NCCL also takes lists, prefixes of names, and with ^ what it must not use
        gloo = nccl.removeprefix("=") if nccl and not set("^,") & set(nccl) else interface_to(address)
    if gloo:
        os.environ[GLOO] = gloo
        os.environ[NCCL] = nccl or gloo


def interface_to(address: str) -> str | None:
    """Return the interface that has the route to an IPv4 address or host name; None for loopback or if unknown."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
        if own.startswith("127."):
            return None
        return next((name for _, name in socket.if_nameindex() if _address_of(name) == own), None)
    except OSError:
        return None


def _address_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            packed = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:  # it has no IPv4 address
            return None
    return socket.inet_ntoa(packed[20:24])
