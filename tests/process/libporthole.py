"""libporthole.so in a Python program, over ctypes: what any language with a C interface can do.

    node = Node(library, statedir, url, key="...", hostname="x")
    node.wait_running(); s = node.dial("udp6", "peer:53")        # a socket object
"""
import ctypes
import json
import os
import socket

ERRORS = {-1: "invalid", -2: "unavailable", -3: "timeout", -4: "refused", -5: "unauthorized", -7: "not found", -8: "exists", -11: "limit",
          -12: "cancelled", -13: "reset"}


class PortholeError(Exception):
    def __init__(self, code, message):
        super().__init__(f"{ERRORS.get(code, code)}: {message}")
        self.code = code


class _Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 512)]


class _Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("state_dir", ctypes.c_char_p), ("control_url", ctypes.c_char_p), ("auth_key", ctypes.c_char_p),
                ("hostname", ctypes.c_char_p), ("ca_file", ctypes.c_char_p), ("udp_port", ctypes.c_uint16), ("ephemeral", ctypes.c_int),
                ("relay_only", ctypes.c_int)]


class _Proxy(ctypes.Structure):
    _fields_ = [("address", ctypes.c_char * 64), ("username", ctypes.c_char * 64), ("password", ctypes.c_char * 64)]


def load(build):
    lib = ctypes.CDLL(os.path.join(build, "lib", "libporthole.so"))
    for name in ("start", "listen"):
        getattr(lib, "porthole_" + name).restype = ctypes.c_void_p
    lib.porthole_close.restype = lib.porthole_listener_close.restype = lib.porthole_free.restype = None
    lib.porthole_version.restype = ctypes.c_char_p
    return lib


def _checked(code, error):
    if code != 0:
        raise PortholeError(error.code, error.message.decode())


def _text(s):
    return s.encode() if s else None


class Listener:
    def __init__(self, lib, handle):
        self.lib, self.handle = lib, ctypes.c_void_p(handle)

    def fileno(self):
        return self.lib.porthole_listener_fd(self.handle)

    def accept(self, timeout_ms=20000):
        e, fd, peer = _Error(), ctypes.c_int(-1), ctypes.create_string_buffer(64)
        _checked(self.lib.porthole_accept(self.handle, timeout_ms, ctypes.byref(fd), peer, ctypes.c_size_t(64), ctypes.byref(e)), e)
        return socket.socket(fileno=fd.value), peer.value.decode()

    def close(self):
        self.lib.porthole_listener_close(self.handle)


class Packets:
    def __init__(self, lib, fd):
        self.lib, self.socket = lib, socket.socket(fileno=fd)

    def fileno(self):
        return self.socket.fileno()

    def receive(self, timeout_ms=20000):
        e, size, peer, buffer = _Error(), ctypes.c_size_t(), ctypes.create_string_buffer(64), ctypes.create_string_buffer(65536)
        _checked(self.lib.porthole_receive_from(self.fileno(), timeout_ms, buffer, ctypes.c_size_t(65536), ctypes.byref(size), peer,
                                                ctypes.c_size_t(64), ctypes.byref(e)), e)
        return buffer.raw[:size.value], peer.value.decode()

    def send(self, peer, data):
        e = _Error()
        _checked(self.lib.porthole_send_to(self.fileno(), peer.encode(), data, ctypes.c_size_t(len(data)), ctypes.byref(e)), e)

    def close(self):
        self.socket.close()


class Node:
    def __init__(self, lib, state_dir, url=None, key=None, hostname=None, ca_file=None):
        self.lib = lib
        o, e = _Options(), _Error()
        lib.porthole_options_init(ctypes.byref(o))
        o.state_dir, o.control_url, o.auth_key, o.hostname, o.ca_file = map(_text, (state_dir, url, key, hostname, ca_file))
        handle = lib.porthole_start(ctypes.byref(o), ctypes.byref(e))
        if not handle:
            raise PortholeError(e.code, e.message.decode())
        self.handle = ctypes.c_void_p(handle)

    def _json(self, name, *args):
        e, out = _Error(), ctypes.c_void_p()
        _checked(getattr(self.lib, "porthole_" + name)(self.handle, *args, ctypes.byref(out), ctypes.byref(e)), e)
        if not out.value:
            return None
        text = ctypes.string_at(out.value)
        self.lib.porthole_free(out)
        return json.loads(text)

    def _plain(self, name, *args):
        e = _Error()
        _checked(getattr(self.lib, "porthole_" + name)(self.handle, *args, ctypes.byref(e)), e)

    def wait_running(self, timeout_ms=20000):
        self._plain("wait_running", timeout_ms)

    def wait_peer(self, name, timeout_ms=20000):
        self._plain("wait_peer", name.encode(), timeout_ms)

    def status(self):
        return self._json("status_json")

    def event_fd(self):
        return self.lib.porthole_event_fd(self.handle)

    def next_event(self, timeout_ms=0):
        return self._json("next_event", timeout_ms)

    def ping(self, peer, timeout_ms=10000):
        return self._json("ping", peer.encode(), timeout_ms)

    def dial(self, network, address, timeout_ms=20000):
        fd = ctypes.c_int(-1)
        self._plain("dial", network.encode(), address.encode(), timeout_ms, ctypes.byref(fd))
        return socket.socket(fileno=fd.value)

    def listen(self, port):
        e = _Error()
        handle = self.lib.porthole_listen(self.handle, ctypes.c_uint16(port), ctypes.byref(e))
        if not handle:
            raise PortholeError(e.code, e.message.decode())
        return Listener(self.lib, handle)

    def listen_packet(self, port):
        fd = ctypes.c_int(-1)
        self._plain("listen_packet", ctypes.c_uint16(port), ctypes.byref(fd))
        return Packets(self.lib, fd.value)

    def expose(self, port, local):
        self._plain("expose", ctypes.c_uint16(port), local.encode(), 0)

    def expose_udp(self, port, local):
        self._plain("expose_udp", ctypes.c_uint16(port), local.encode(), 0)

    def loopback(self):
        p = _Proxy()
        self._plain("loopback", ctypes.byref(p))
        return p.address.decode(), p.username.decode(), p.password.decode()

    def close(self):
        self.lib.porthole_close(self.handle)
