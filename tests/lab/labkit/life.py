# SPDX-License-Identifier: MIT
"""The verbs that start and end hosts, and what is put into them when they start."""

import os

from labkit import boot, guestlogs, guests, network, parallel, project, qemu, root, ssh, state, warm
from labkit.errors import LabError, say
from labkit.place import HOST_NAMES


def _power_on(place, hosts, options, fresh):
    """Boots the hosts, or goes on from hosts that were saved after their boot; returns when they are usable."""
    folders = {} if fresh else warm.prepare(place, hosts, options)
    say(f"{'booting' if fresh else 'starting'} {', '.join(hosts)}")

    def one(host):
        if fresh:
            qemu.start(place, host, options)
            boot.wait(place, host, 0, options["wait"])
        else:
            warm.resume(place, host, options, folders[host])
        boot.finish(place, host, options["root"], options["wait"], not fresh)

    parallel.each(one, hosts, lambda: qemu.kill_all(place, hosts))


def up(place, args):
    """Makes and boots the hosts; whatever goes wrong, nothing is left running."""
    if not 1 <= args.hosts <= len(HOST_NAMES):
        raise LabError(f"--hosts must be 1 to {len(HOST_NAMES)}", 2)
    if args.dom0_mem + 128 > args.mem:
        raise LabError(f"--mem {args.mem} leaves no room for guests beside --dom0-mem {args.dom0_mem}: give at least 128 MB more", 2)
    if os.geteuid() != 0:
        raise LabError("the lab needs root (network namespaces, packages): use sudo")
    with state.exclusive(place):
        if state.is_up(place):
            raise LabError(f"the lab '{place.name}' is up already: 'lab --name {place.name} down' ends it,"
                           " or use another name")
        names = list(HOST_NAMES[:args.hosts])
        kinds = args.hypervisor.split(",")
        if set(kinds) - {"xen", "pagurus"} or len(kinds) not in (1, args.hosts):
            raise LabError(f"--hypervisor {args.hypervisor}: give xen or pagurus, once or for each of the {args.hosts} hosts", 2)
        options = {
            "hosts": names, "root": root.root_folder(), "kernel": args.kernel, "smp": args.smp, "mem": args.mem,
            "dom0_mem": args.dom0_mem, "machine": args.machine, "cpu": args.cpu, "xen_args": args.xen_args,
            "disk": args.disk, "nic": args.nic, "dom0_args": args.dom0_args, "qemu_args": args.qemu_args.split(),
            "image": {host: project.hypervisor_image() if kind == "pagurus" else None
                      for host, kind in zip(names, kinds * args.hosts if len(kinds) == 1 else kinds)},
            "wait": args.wait, "limits": {},
        }
        guests_disk = guests.guests_disk(not args.no_guests)
        state.clear_logs(place)
        state.store(place, options)
        try:
            os.makedirs(place.disks, mode=0o700, exist_ok=True)
            network.create(place.netns, names)
            for host in names:
                os.makedirs(place.host(host), mode=0o700)
                qemu.make_overlay(place.disk(host, "root.qcow2"), os.path.join(options["root"], "root.img"), "raw")
                qemu.make_overlay(place.disk(host, "guests.qcow2"), guests_disk, "raw")
            # QEMU cannot save the state of an NVMe controller.
            _power_on(place, names, options, args.fresh or args.disk == "nvme")
            if not args.no_install:
                project.push(place, names, options["root"])
        except BaseException:
            state.remove(place, options["root"])
            raise
    say(f"ready: {', '.join(names)}; consoles are logged to {place.state}/HOST/console.log")


def kill(place, args):
    """Cuts the power of a host."""
    with state.exclusive(place):
        options = state.load(place)
        state.check_host(options, args.host)
        if not qemu.kill(place, args.host):
            raise LabError(f"host {args.host} is not running")
        ssh.close_master(place, args.host, options["root"])
        options["limits"].pop(args.host, None)
        state.store(place, options)


def start(place, args):
    """Powers a host on again, with the disk that it had."""
    with state.exclusive(place):
        options = state.load(place)
        state.check_host(options, args.host)
        if qemu.pid(place, args.host) is not None:
            raise LabError(f"host {args.host} is running already")
        ssh.close_master(place, args.host, options["root"])
        since = boot.log_size(place, args.host)
        say(f"booting {args.host}")
        try:
            qemu.start(place, args.host, options)
            boot.wait(place, args.host, since, options["wait"])
            boot.finish(place, args.host, options["root"], options["wait"])
        except BaseException:
            qemu.kill(place, args.host)
            raise
    say(f"ready: {args.host}")


def push(place, args):
    """Installs the built tree into the running hosts again."""
    options = state.load(place)
    hosts = args.hosts or [host for host in options["hosts"] if qemu.pid(place, host) is not None]
    for host in hosts:
        state.check_host(options, host)
    project.push(place, hosts, options["root"])


def down(place, args):
    """Ends the lab; a lab that is not up is fine."""
    with state.exclusive(place):
        if not state.is_up(place) and not network.exists(place.netns):
            say(f"the lab '{place.name}' is not up")
            return
        options = state.load(place) if state.is_up(place) else {"hosts": [], "root": None}
        if not args.fast:
            for host in options["hosts"]:
                if os.path.exists(place.host(host, "ssh.sock")) and qemu.pid(place, host) is not None:
                    try:
                        guestlogs.fetch(place, host, options, 5)
                    except LabError as error:
                        say(f"the logs of the guests of {host} are lost: {error}")
        state.remove(place, options["root"])
    say(f"down; console logs stay in {place.state} until the next up")
