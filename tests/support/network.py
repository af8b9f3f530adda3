"""A slow, lossy network on one machine: namespaces that a small router of our own joins.

Each host is a network namespace with a TUN device; packets between them are passed on after a
delay, some are lost, and a cable can be pulled. Needs root on Linux.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

TUN = Path("/dev/net/tun")
SET_INTERFACE, TUN_RAW = 0x400454CA, 0x1001  # ioctl TUNSETIFF; IFF_TUN | IFF_NO_PI
PACKET = 2048


def available() -> bool:
    """Tells whether namespaces and TUN devices can be made here."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() or not TUN.exists():
        return False
    name = f"mlxr-try{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made


class Network:
    """Hosts 10.77.0.1, 10.77.0.2, … as namespaces, for the length of a with block.

    delay: seconds that a packet takes. loss: share of packets that are lost. cut: no packet passes.
    """

    def __init__(self, size: int, delay: float = 0.005, loss: float = 0.01) -> None:
        self.names = [f"mlxr{os.getpid()}-{i}" for i in range(size)]
        self.ips = [f"10.77.0.{i + 1}" for i in range(size)]
        self.delay, self.loss, self.cut = delay, loss, False
        self.devices: list[int] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.route, daemon=True)

    def __enter__(self) -> "Network":
        for i, name in enumerate(self.names):
            device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
            told = f"mlxr{os.getpid() % 100000}{i}"
            fcntl.ioctl(device, SET_INTERFACE, struct.pack("16sH", told.encode(), TUN_RAW))
            self.devices.append(device)
            for call in (
                ["ip", "netns", "add", name],
                ["ip", "link", "set", told, "netns", name],
                *(["ip", "-n", name, *rest] for rest in (
                    ["addr", "add", f"{self.ips[i]}/24", "dev", told],
                    ["link", "set", told, "mtu", "1400", "up"], ["link", "set", "lo", "up"],
                )),
            ):  # fmt: skip
                subprocess.run(call, check=True, capture_output=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        for device in self.devices:
            os.close(device)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def inside(self, rank: int) -> Sequence[str]:
        """Returns what to put before a command, to run it on a host."""
        return ["ip", "netns", "exec", self.names[rank]]

    def route(self) -> None:
        rng, waiting, number = random.Random(0), list[tuple[float, int, int, bytes]](), 0
        while not self.over.is_set():
            now = time.monotonic()
            pause = max(0.0, min(0.1, waiting[0][0] - now)) if waiting else 0.1
            for device in select.select(self.devices, [], [], pause)[0]:
                packet = os.read(device, PACKET)
                to = packet[19] - 1 if packet[0] >> 4 == 4 else -1  # the last byte of an address
                if 0 <= to < len(self.devices) and not self.cut and rng.random() >= self.loss:
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + self.delay, number, to, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(waiting)
                with suppress(BlockingIOError):  # a full queue loses it, as a router would
                    os.write(self.devices[to], packet)
