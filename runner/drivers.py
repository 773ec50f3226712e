"""Which process a driver is, and whether it still runs."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil


def driver_name() -> str:
    """Return this process as host, process id, start time and machine: no other ever has that."""
    pid = os.getpid()
    return f"{platform.node()} {pid} {process_started(pid) or 0.0:.2f} {machine()}".rstrip()


def is_alive(driver: str) -> bool | None:
    """Return whether a driver still runs; None where that can't be seen from here.

    Two machines, or two containers, may have one host name. The same machine that was started anew
    since then has nobody of before; another one, and other processes' view of this one, can't be
    looked into.
    """
    host, _, rest = driver.partition(" ")
    pid, _, rest = rest.partition(" ")
    started, _, there = rest.partition(" ")
    if not started or not pid.isdecimal():
        return False
    if host != platform.node():
        return None
    if there and there != (here := machine()):
        install, boot, _ = there.split(":")
        own_install, own_boot, _ = here.split(":") if here else ("", "", "")
        rebooted = install and install == own_install and boot != own_boot
        return False if rebooted else None
    since = process_started(int(pid))
    return since is not None and f"{since:.2f}" == started


def machine() -> str:
    """Return what tells apart machines of one host name, as ``install:boot:processes``.

    The first eight digits of Linux's machine id and of the boot's id, and the number of the process
    namespace, which is a container's own. What can't be read is left empty, elsewhere all of it.
    """
    install, boot, processes = "", "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    with suppress(OSError):
        install = Path("/etc/machine-id").read_text().strip()[:8]
    with suppress(OSError):
        processes = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"{install}:{boot}:{processes}" if boot else ""


def process_started(pid: int) -> float | None:
    """Return when a process of this machine started, as Unix time; None: it is gone or a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
