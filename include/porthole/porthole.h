/* libporthole: a tailnet node inside your program. C ABI.
 *
 * A node joins a tailnet (Headscale, Tailscale's control plane or Porthole's own coordinator) and lets the program
 * dial and listen on it, in userspace: no TUN device, no root, no other process.
 *
 * Threading: every function may be called from any thread at any time; calls under way when another thread closes the
 * node, and calls on a node that is closed, end with PORTHOLE_ERROR_CANCELLED. Functions that block say so;
 * the node's own work happens on a thread of the library. The library never calls back into the program, installs no
 * signal handler, writes nothing to stdout or stderr and never forks. Two nodes in one process work.
 *
 * Errors: functions return PORTHOLE_OK (0) or a negative PORTHOLE_ERROR_* value; the sentence for people goes into
 * the porthole_error the caller may pass (NULL is allowed). Strings are UTF-8; inputs are copied during the call.
 */
#ifndef PORTHOLE_PORTHOLE_H
#define PORTHOLE_PORTHOLE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PORTHOLE_API __attribute__((visibility("default")))
#else
#define PORTHOLE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
  PORTHOLE_OK = 0,
  PORTHOLE_ERROR_INVALID = -1,        /* bad argument, file or message */
  PORTHOLE_ERROR_UNAVAILABLE = -2,    /* not reachable now; trying again may help */
  PORTHOLE_ERROR_TIMEOUT = -3,
  PORTHOLE_ERROR_REFUSED = -4,
  PORTHOLE_ERROR_UNAUTHORIZED = -5,   /* wrong, used or unknown key or password; not allowed by the tailnet's rules */
  PORTHOLE_ERROR_EXPIRED = -6,
  PORTHOLE_ERROR_NOT_FOUND = -7,      /* no such name, peer or device */
  PORTHOLE_ERROR_EXISTS = -8,         /* port taken, or the state directory is in use by another process */
  PORTHOLE_ERROR_PERMISSION = -9,
  PORTHOLE_ERROR_PROTOCOL = -10,      /* the other side, or something in between, does not speak the protocol */
  PORTHOLE_ERROR_LIMIT = -11,
  PORTHOLE_ERROR_CANCELLED = -12,     /* the node was closed */
  PORTHOLE_ERROR_RESET = -13,
  PORTHOLE_ERROR_IO = -14,
  PORTHOLE_ERROR_UNSUPPORTED = -15,   /* e.g. state written by a newer version */
  PORTHOLE_ERROR_INTERNAL = -16
};

typedef struct porthole_error {
  int code;           /* PORTHOLE_ERROR_* or 0 */
  char message[512];  /* one sentence, NUL-terminated; no secret is ever in it */
} porthole_error;

typedef struct porthole_node porthole_node;

typedef struct porthole_options {
  size_t size;              /* sizeof(porthole_options), set by porthole_options_init */
  const char* state_dir;    /* required: directory for keys and profile; created 0700 if missing. One process at a time */
  const char* control_url;  /* coordination server, http(s)://host[:port]; NULL: the one stored in state_dir */
  const char* auth_key;     /* pre-auth key, or "file:PATH"; NULL: stored login, else interactive (event login_url) */
  const char* hostname;     /* wanted name; NULL: the host's name, cleaned up to a DNS label */
  const char* ca_file;      /* PEM bundle trusted besides the system's; NULL: SSL_CERT_FILE or the system's alone */
  uint16_t udp_port;        /* preferred UDP port; 0: the last one used, else any */
  int ephemeral;            /* ask for a node that vanishes when it goes offline */
  int relay_only;           /* never use or offer direct UDP paths */
} porthole_options;

PORTHOLE_API void porthole_options_init(porthole_options* options);

/* Opens the state directory, starts the node's thread and returns without waiting for the network. NULL on error:
 * unusable options, state directory not writable, corrupt or foreign or newer state, state in use by another
 * process. */
PORTHOLE_API porthole_node* porthole_start(const porthole_options* options, porthole_error* error);

/* Blocks until the node is running (has its addresses and can be reached), timeout_ms passed (-1: none), or it cannot
 * get there by itself: login needed without anybody to ask is PORTHOLE_ERROR_UNAUTHORIZED, a refused key too. */
PORTHOLE_API int porthole_wait_running(porthole_node* node, int timeout_ms, porthole_error* error);

/* Blocks until `peer` (name, FQDN or tailnet address) is known and an encrypted session with it is up, so that the
 * next dial succeeds at the first attempt. */
PORTHOLE_API int porthole_wait_peer(porthole_node* node, const char* peer, int timeout_ms, porthole_error* error);

/* Ends every connection, says goodbye to peers where possible (at most 2 s), frees the node. NULL is allowed. */
PORTHOLE_API void porthole_close(porthole_node* node);

/* Logs out at the coordination server and forgets the login; the node then needs a key or a person again. Blocks. */
PORTHOLE_API int porthole_logout(porthole_node* node, int timeout_ms, porthole_error* error);

/* Events, one JSON object each, oldest first, e.g. {"event":"running","ips":["100.64.0.1","fd7a:..."],"ms":41},
 * {"event":"login_url","url":"..."}, {"event":"state","state":"starting"},
 * {"event":"peer_path","peer":"home","path":"direct","endpoint":"192.0.2.7:41641","latency_ms":3.1}.
 * porthole_next_event: *json_out (free with porthole_free) or NULL after timeout_ms (0: do not wait, -1: no limit).
 * PORTHOLE_ERROR_CANCELLED once the node is closed. porthole_event_fd: readable while events wait; for poll() only;
 * belongs to the node. At most 1024 events (4 MiB) wait; older peer_path events are dropped first. */
PORTHOLE_API int porthole_next_event(porthole_node* node, int timeout_ms, char** json_out, porthole_error* error);
PORTHOLE_API int porthole_event_fd(porthole_node* node);

/* {"state":"running","self":{"name":..,"ips":[..]},"peers":[{"name":..,"ips":[..],"online":..,"path":"direct",
 * "endpoint":..,"relay":..,"latency_ms":..,"rx_bytes":..,"tx_bytes":..,"why_not_direct":..}],...}. No secrets. */
PORTHOLE_API int porthole_status_json(porthole_node* node, char** json_out, porthole_error* error);

/* The loopback proxy: SOCKS5 (CONNECT and UDP ASSOCIATE; user/password) and HTTP (CONNECT, and plain requests for
 * http:// URLs; Basic credential) on one port of 127.0.0.1. The credential is new at each start of the node: without one, every user of this machine
 * would be in the tailnet. Copies NUL-terminated strings. First call starts it; later calls return the same. */
typedef struct porthole_proxy {
  char address[64];   /* "127.0.0.1:34567" */
  char username[64];
  char password[64];
} porthole_proxy;
PORTHOLE_API int porthole_loopback(porthole_node* node, porthole_proxy* out, porthole_error* error);
/* Same, on an address of the caller's choice ("127.0.0.1:1080"); only loopback addresses are accepted. */
PORTHOLE_API int porthole_loopback_on(porthole_node* node, const char* address, porthole_proxy* out, porthole_error* error);

/* Dials host:port ("home:8443", "100.64.0.2:80", "[fd7a::1]:22") over the tailnet. Blocks for at most timeout_ms
 * (-1: 30 s). *fd_out is the caller's: close() it. A name means its IPv4 address; "tcp6" and "udp6" mean the IPv6 one,
 * "tcp4" and "udp4" insist on IPv4.
 *
 * "tcp": a connected stream socket. shutdown(SHUT_WR) sends FIN; a reset by the peer reads as ECONNRESET.
 *
 * "udp": a connected local datagram socket (AF_UNIX, SOCK_SEQPACKET): one send() is one datagram to host:port, one
 * recv() one datagram from there (PORTHOLE_DATAGRAM_MAX is room enough). UDP has no handshake, so success only says
 * that the node runs and knows the device. Datagrams that are too long for one packet of the tailnet
 * (PORTHOLE_DATAGRAM_MAX_IPV4, _IPV6) are dropped, as are those that come while the program does not read: the newest
 * go. An empty one from the peer is dropped, too, since recv() would show it as the end. All of this is counted in
 * porthole_status_json ("datagrams"). While the way out is full, send() blocks (EAGAIN if non-blocking). recv() gives 0
 * once the node is closed; send with MSG_NOSIGNAL. */
#define PORTHOLE_DATAGRAM_MAX_IPV4 1252
#define PORTHOLE_DATAGRAM_MAX_IPV6 1232
#define PORTHOLE_DATAGRAM_MAX 65507
PORTHOLE_API int porthole_dial(porthole_node* node, const char* network, const char* address, int timeout_ms, int* fd_out,
                               porthole_error* error);

/* The same for an event loop, without waiting: *fd_out becomes readable when the dial has ended, for better or worse.
 * Then porthole_dial_end tells how, with the connected descriptor; the caller closes both. Before, it answers
 * PORTHOLE_ERROR_UNAVAILABLE. To give up, close *fd_out. */
PORTHOLE_API int porthole_dial_begin(porthole_node* node, const char* network, const char* address, int timeout_ms, int* fd_out,
                                     porthole_error* error);
PORTHOLE_API int porthole_dial_end(int fd, int* connection_out, porthole_error* error);

/* Listens on a TCP port of the node's tailnet addresses. */
typedef struct porthole_listener porthole_listener;
PORTHOLE_API porthole_listener* porthole_listen(porthole_node* node, uint16_t port, porthole_error* error);
/* Blocks (-1: no limit). *fd_out as in porthole_dial; peer_out gets "100.64.0.2:53211" and may be NULL. */
PORTHOLE_API int porthole_accept(porthole_listener* listener, int timeout_ms, int* fd_out, char* peer_out, size_t peer_size,
                                 porthole_error* error);
/* Readable while connections wait for porthole_accept (which then answers at once; with timeout_ms 0 it never blocks);
 * also once the listener or its node is closed. For poll() only; belongs to the listener. -1: closed. */
PORTHOLE_API int porthole_listener_fd(porthole_listener* listener);
/* When it returns, the port refuses; connections that were accepted go on. */
PORTHOLE_API void porthole_listener_close(porthole_listener* listener);

/* Receives and sends datagrams on a UDP port (0: any free one) of the node's tailnet addresses, IPv4 and IPv6, with
 * any peer. *fd_out is a local datagram socket of the caller's (AF_UNIX, SOCK_SEQPACKET) for poll(), close() and the two
 * calls below. Losses are as in porthole_dial "udp", empty datagrams pass.
 *
 * A program that wants to do without the two calls can recv() and send() itself: each message is a head of
 * PORTHOLE_PACKET_HEAD bytes and the datagram. Head: the address family (4 or 6), a zero byte, the peer's port (16 bits,
 * network order), the peer's address (16 bytes; an IPv4 one in the first four, the rest zero). */
#define PORTHOLE_PACKET_HEAD 20
PORTHOLE_API int porthole_listen_packet(porthole_node* node, uint16_t port, int* fd_out, porthole_error* error);
/* Waits for a datagram (-1: no limit; 0: do not wait, PORTHOLE_ERROR_TIMEOUT if there is none). *size_out is its size;
 * what is beyond buffer_size is lost. peer_out gets "100.64.0.2:53211" and may be NULL. PORTHOLE_ERROR_CANCELLED once the
 * node is closed. */
PORTHOLE_API int porthole_receive_from(int fd, int timeout_ms, void* buffer, size_t buffer_size, size_t* size_out, char* peer_out,
                                       size_t peer_size, porthole_error* error);
/* Sends one datagram to a tailnet address and port ("100.64.0.2:5353", "[fd7a::2]:53"; no names). Never blocks:
 * PORTHOLE_ERROR_UNAVAILABLE while the way out is full (poll for POLLOUT), PORTHOLE_ERROR_LIMIT for a datagram that
 * is too long. */
PORTHOLE_API int porthole_send_to(int fd, const char* peer, const void* data, size_t size, porthole_error* error);

/* Forwards every tailnet connection to `port` to a TCP address of this host ("127.0.0.1:8443"), both ways, with
 * half-close and backpressure, inside the node's own thread. At most max_connections at once (0: 1024) and at most a
 * quarter of them from one peer; connections beyond are refused. */
PORTHOLE_API int porthole_expose(porthole_node* node, uint16_t port, const char* local_address, int max_connections,
                                 porthole_error* error);
/* Who is behind a forwarded connection: local_port is the source port that the local service sees.
 * {"peer":"ipad","ip":"100.64.0.3","port":51820,"stable_id":"3","user":"alice"} */
PORTHOLE_API int porthole_exposed_peer(porthole_node* node, uint16_t local_port, char** json_out, porthole_error* error);

/* The same for datagrams: those that come to UDP `port` go to a UDP address of this host, each tailnet source (address
 * and port) from a local socket of its own, and what the service answers goes back to that source. A source that was
 * quiet for 5 minutes is forgotten. At most max_sources are known at once (0: 1024), a quarter of them from one address;
 * beyond, the one that was quiet longest makes room. */
PORTHOLE_API int porthole_expose_udp(porthole_node* node, uint16_t port, const char* local_address, int max_sources,
                                     porthole_error* error);
/* Who is behind a forwarded source, by the UDP source port that the local service sees. */
PORTHOLE_API int porthole_exposed_udp_peer(porthole_node* node, uint16_t local_port, char** json_out, porthole_error* error);

/* Disco ping: {"peer":..,"path":"direct","endpoint":..,"latency_ms":..}. Blocks for at most timeout_ms. */
PORTHOLE_API int porthole_ping(porthole_node* node, const char* peer, int timeout_ms, char** json_out, porthole_error* error);
/* What the network allows: UDP, IPv4/IPv6, NAT behaviour, relays with latencies. Blocks for at most timeout_ms. */
PORTHOLE_API int porthole_netcheck(porthole_node* node, int timeout_ms, char** json_out, porthole_error* error);

/* Log lines go to this descriptor from now on (duplicated; one write per line; -1: discard, the default). */
PORTHOLE_API int porthole_set_log_fd(porthole_node* node, int fd, porthole_error* error);

PORTHOLE_API void porthole_free(void* memory);
PORTHOLE_API const char* porthole_version(void);

#ifdef __cplusplus
}
#endif
#endif
