# SPDX-License-Identifier: MIT
"""The bodies of all records but PAGES (stream.md 5 to 9): decoded, and checked in themselves."""

import json
import struct
import unicodedata
import uuid

from . import Refused

GUESTS = {1: "PV64", 2: "SIM"}
FEATURES = ("LZ4", "ZSTD", "DELTA", "RESUME", "VERIFY", "DISKS")
DISKS_MAX = 16
DISK_DATA_MAX = 1 << 20
PFNS_MAX = 1 << 28
VCPUS_MAX = 512
CONTEXT_SIZE = 5168
EXTENDED_SIZE = 64
XSAVE_MIN = 16 + 576
REASONS = {1: "CANCELLED", 2: "REFUSED", 3: "CORRUPT", 4: "PROTOCOL", 5: "RESOURCES", 6: "GUEST", 7: "INTERNAL"}
STATES = {1: "NOT_STARTED", 2: "RECEIVING", 3: "READY", 4: "RUNNING"}
INDEX_ENTRY = struct.Struct("<QQQII")


def exact(body, size):
    if len(body) != size:
        raise Refused("length %d instead of %d" % (len(body), size))


def at_least(body, size):
    if len(body) < size:
        raise Refused("length %d where %d is the least" % (len(body), size))


def zero(value, what="the reserved field"):
    if value:
        raise Refused("%s is not zero" % what)


def within(value, low, high, what):
    if not low <= value <= high:
        raise Refused("%s is %d, not %d to %d" % (what, value, low, high))


def named(value, names, what):
    if value not in names:
        raise Refused("%s %d does not exist" % (what, value))
    return names[value]


def text(raw):
    try:
        read = bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("the text is not UTF-8") from None
    for c in read:
        if unicodedata.category(c) == "Cc" and c not in "\t\n":
            raise Refused("the text has the control character U+%04X" % ord(c))
    return read


def json_object(raw, what):
    try:
        value = json.loads(text(raw))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Refused("%s is not a JSON object" % what)
    return value


def features(bits):
    if bits >> len(FEATURES):
        raise Refused("feature bits 0x%x do not exist" % (bits >> len(FEATURES) << len(FEATURES)))
    return [name for i, name in enumerate(FEATURES) if bits >> i & 1]


def empty(body):
    exact(body, 0)
    return {}


def hello(body):
    exact(body, 32)
    guest, bits, nr_pfns, populated, vcpus, live = struct.unpack("<IIQQII", body)
    within(nr_pfns, 1, PFNS_MAX, "nr_pfns")
    within(populated, 0, nr_pfns, "populated")
    within(vcpus, 1, VCPUS_MAX, "vcpus")
    within(live, 0, 1, "live")
    return {"guest": named(guest, GUESTS, "guest kind"), "features": features(bits), "nr_pfns": nr_pfns,
            "populated": populated, "vcpus": vcpus, "live": live}


def identity(body):
    at_least(body, 17)
    name = text(body[16:])
    within(len(body) - 16, 1, 255, "the length of the name")
    if any(c in "/\t\n" for c in name):
        raise Refused("the name has a character that no name may have")
    return {"uuid": str(uuid.UUID(bytes=bytes(body[:16]))), "name": name}


def msr_array(raw):
    out = []
    for index, reserved, value in struct.iter_unpack("<IIQ", raw):
        zero(reserved, "the reserved field of an MSR")
        out.append({"index": index, "value": value})
    return out


def cpu_policy(body):
    at_least(body, 8)
    leaves, msrs = struct.unpack_from("<II", body)
    exact(body, 8 + 24 * leaves + 16 * msrs)
    middle = 8 + 24 * leaves
    names = ("leaf", "subleaf", "eax", "ebx", "ecx", "edx")
    return {"leaves": [dict(zip(names, v)) for v in struct.iter_unpack("<IIIIII", body[8:middle])],
            "msrs": msr_array(body[middle:])}


def config(body):
    at_least(body, 9)
    form, reserved = struct.unpack_from("<II", body)
    zero(reserved)
    form = named(form, {1: "LIBXL_JSON", 2: "SIM"}, "format")
    content = text(body[8:])
    if form == "LIBXL_JSON":
        json_object(body[8:], "the configuration")
    return {"format": form, "text": content}


def parent(body):
    exact(body, 32)
    session, digest, generation = struct.unpack("<16sQQ", body)
    if not generation:
        raise Refused("generation is 0")
    return {"session": session.hex(), "digest": digest, "generation": generation}


def disk_path(raw):
    path = text(raw)
    within(len(raw), 2, 1023, "the length of the path")
    if path[0] != "/" or any(part in ("", ".", "..") for part in path[1:].split("/")):
        raise Refused("the path is not made of names from / on")
    if any(c in "\t\n" for c in path):
        raise Refused("the path has a character that no path may have")
    return path


def disk(body):
    at_least(body, 24)
    size, used, form, length = struct.unpack_from("<QQII", body)
    within(size, 512, 1 << 50, "size")
    if size % 512:
        raise Refused("size is no multiple of 512")
    within(used, 0, 1 << 50, "used")
    within(length, 1, 31, "vdev_length")
    at_least(body, 24 + length)
    vdev = bytes(body[24:24 + length])
    if not all(0x61 <= c <= 0x7A or 0x30 <= c <= 0x39 for c in vdev):
        raise Refused("vdev is not made of small letters and digits")
    return {"size": size, "used": used, "format": named(form, {1: "RAW", 2: "QCOW2"}, "format"), "vdev": vdev.decode(),
            "path": disk_path(body[24 + length:])}


def disk_attach(body):
    exact(body, 8)
    number, reserved = struct.unpack("<II", body)
    zero(reserved)
    within(number, 0, DISKS_MAX - 1, "disk")
    return {"disk": number}


def disk_data(body):
    within(len(body), 0, DISK_DATA_MAX, "the number of bytes")
    return {"bytes": len(body)}


def round_end(body):
    exact(body, 24)
    number, reserved, pages, size = struct.unpack("<IIQQ", body)
    zero(reserved)
    return {"round": number, "pages": pages, "bytes": size}


def stop(body):
    exact(body, 8)
    return {"wallclock_ns": struct.unpack("<Q", body)[0]}


def digest(body):
    exact(body, 16)
    value, pages = struct.unpack("<QQ", body)
    within(pages, 0, PFNS_MAX, "pages")
    return {"digest": value, "pages": pages}


def pv_info(body):
    exact(body, 24)
    word, levels, nr_pfns, start = struct.unpack("<IIQQ", body)
    within(word, 8, 8, "word_size")
    within(levels, 4, 4, "levels")
    within(nr_pfns, 1, PFNS_MAX, "nr_pfns")
    if start >= nr_pfns:
        raise Refused("start_info_pfn 0x%x is not below nr_pfns 0x%x" % (start, nr_pfns))
    return {"nr_pfns": nr_pfns, "start_info_pfn": start}


def p2m_frames(body):
    at_least(body, 16)
    first, count = struct.unpack_from("<II", body)
    if not count:
        raise Refused("count is 0")
    exact(body, 8 + 8 * count)
    return {"first": first, "pfns": list(struct.unpack_from("<%dQ" % count, body, 8))}


def tsc_info(body):
    exact(body, 24)
    mode, khz, nsec, incarnation, reserved = struct.unpack("<IIQII", body)
    zero(reserved)
    within(mode, 0, 3, "mode")
    return {"mode": mode, "khz": khz, "nsec": nsec, "incarnation": incarnation}


def vcpu_number(body):
    number, reserved = struct.unpack_from("<II", body)
    zero(reserved)
    within(number, 0, VCPUS_MAX - 1, "vcpu")
    return number


def vcpu_context(body):
    exact(body, 8 + CONTEXT_SIZE)
    number = vcpu_number(body)
    blob = body[8:]

    def word(at):
        return struct.unpack_from("<Q", blob, at)[0]

    entries = word(4960)
    within(entries, 0, 7168, "gdt_ents")
    frames = struct.unpack_from("<16Q", blob, 4832)
    used = (entries + 511) // 512
    zero(any(frames[used:]), "a gdt_frames entry that gdt_ents does not reach")
    out = {"vcpu": number, "rdx": word(616), "gdt_ents": entries, "gdt_frames": list(frames[:used])}
    for name, at in (("cr3", 5008), ("user_cr3", 4992)):
        value = word(at)
        zero(value & 0xFFF or value >> 52, "a bit of %s that is not its pfn's" % name)
        out[name + "_pfn"] = value >> 12
    return out


def vcpu_extended(body):
    exact(body, 8 + EXTENDED_SIZE)
    number = vcpu_number(body)
    inner, size = struct.unpack_from("<II", body, 8)
    if inner != number:
        raise Refused("vcpu is %d in the header and %d in the blob" % (number, inner))
    within(size, 32, EXTENDED_SIZE, "size")
    return {"vcpu": number, "size": size}


def vcpu_xsave(body):
    at_least(body, 24 + 16)
    number = vcpu_number(body)
    mask, size, xcr0, accum = struct.unpack_from("<QQQQ", body, 8)
    exact(body, 24 + size)
    if accum:
        if size < XSAVE_MIN:
            raise Refused("size %d where %d is the least" % (size, XSAVE_MIN))
        if not xcr0 & 1 or xcr0 & ~accum or accum & ~mask:
            raise Refused("xcr0 0x%x, xcr0_accum 0x%x and xfeature_mask 0x%x contradict each other" % (xcr0, accum, mask))
    else:
        zero(xcr0, "xcr0 without xcr0_accum")
    return {"vcpu": number, "xfeature_mask": mask, "size": size, "xcr0": xcr0, "xcr0_accum": accum}


def vcpu_msrs(body):
    at_least(body, 24)
    number = vcpu_number(body)
    if len(body) % 16 != 8:
        raise Refused("length %d is not 8 and a multiple of 16" % len(body))
    msrs = msr_array(body[8:])
    if len({m["index"] for m in msrs}) != len(msrs):
        raise Refused("an MSR comes twice")
    return {"vcpu": number, "msrs": msrs}


def shared_info(body):
    exact(body, 4096)
    tree, _, cr3 = struct.unpack_from("<QQQ", body, 3096)
    zero(tree, "pfn_to_mfn_frame_list_list")
    zero(cr3 & 0xFFF or cr3 >> 52, "a bit of p2m_cr3 that is not its pfn's")
    return {"p2m_cr3_pfn": cr3 >> 12}


def device_state(body):
    at_least(body, 8)
    raise Refused("device kind %d does not exist" % struct.unpack_from("<I", body))


def sim_state(body):
    return {"bytes": len(body)}


def hello_reply(body):
    exact(body, 16)
    version, bits, channels, window = struct.unpack("<IIII", body)
    within(version, 1, 1, "version")
    within(channels, 1, 16, "channels")
    if not window:
        raise Refused("window is 0")
    return {"features": features(bits), "channels": channels, "window": window}


def precheck(body):
    at_least(body, 8)
    count, reserved = struct.unpack_from("<II", body)
    zero(reserved)
    lines = text(body[8:]).split("\n")
    if lines.pop() or len(lines) != count or not all(lines):
        raise Refused("the text is not %d lines" % count)
    return {"refusals": lines}


def number_and_zero(name):
    def decode(body):
        exact(body, 8)
        number, reserved = struct.unpack("<II", body)
        zero(reserved)
        return {name: number}
    return decode


def abort(body):
    at_least(body, 8)
    reason, reserved = struct.unpack_from("<II", body)
    zero(reserved)
    return {"reason": named(reason, REASONS, "reason"), "text": text(body[8:])}


def status(body):
    state = number_and_zero("state")(body)["state"]
    return {"state": named(state, STATES, "state")}


def connected(body):
    exact(body, 24)
    fields = dict(zip(("devices_ns", "announced_ns", "devices", "waiting"), struct.unpack("<QQII", body)))
    within(fields["waiting"], 0, fields["devices"], "waiting")
    return fields


def check_reply(body):
    return {"host": json_object(body, "the description")}


def note(body):
    return {"text": text(body)}


def index(body):
    at_least(body, INDEX_ENTRY.size)
    if len(body) % INDEX_ENTRY.size:
        raise Refused("length %d is not a multiple of %d" % (len(body), INDEX_ENTRY.size))
    entries = []
    for offset, first, last, pages, reserved in INDEX_ENTRY.iter_unpack(body):
        zero(reserved)
        entries.append((offset, first, last, pages))
    return {"entries": entries}


def end(body):
    exact(body, 32)
    return dict(zip(("records", "bytes", "index_offset", "index_records"), struct.unpack("<QQQQ", body)))


DECODERS = {
    "HELLO": hello, "IDENTITY": identity, "CPU_POLICY": cpu_policy, "CONFIG": config, "PARENT": parent, "OPEN": empty,
    "DISK": disk, "DISK_ATTACH": disk_attach, "DISK_DATA": disk_data,
    "ROUND_END": round_end, "STOP": stop, "VERIFY": empty, "DIGEST": digest,
    "PV_INFO": pv_info, "PV_P2M_FRAMES": p2m_frames, "PV_SHARED_INFO": shared_info, "VCPU_CONTEXT": vcpu_context,
    "VCPU_EXTENDED": vcpu_extended, "VCPU_XSAVE": vcpu_xsave, "VCPU_MSRS": vcpu_msrs, "TSC_INFO": tsc_info,
    "DEVICE_STATE": device_state, "SIM_STATE": sim_state,
    "HELLO_REPLY": hello_reply, "PRECHECK": precheck, "ACK": number_and_zero("sequence"), "READY": digest,
    "COMMIT": empty, "RUNNING": empty, "ABORT": abort, "QUERY": empty, "STATUS": status,
    "RESUME": number_and_zero("next_sequence"), "RESUME_REPLY": number_and_zero("next_sequence"),
    "CHECK": empty, "CHECK_REPLY": check_reply, "KEEPALIVE": empty, "CONNECTED": connected, "INDEX": index, "NOTE": note, "END": end,
}
