// A tsnet node for the interop tests and the benchmarks: says what happens as JSON lines, offers its loopback proxy,
// exposes local TCP ports on its tailnet addresses and echoes UDP. Ends on SIGTERM.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"tailscale.com/tsnet"
)

var started = time.Now()

var out struct {
	sync.Mutex
}

func emit(event string, members map[string]any) {
	if members == nil {
		members = map[string]any{}
	}
	members["event"] = event
	members["ms"] = time.Since(started).Milliseconds()
	line, err := json.Marshal(members)
	if err != nil {
		log.Fatal(err)
	}
	out.Lock()
	defer out.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "tsnetpeer: %s: %v\n", what, err)
	os.Exit(1)
}

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// halves copies both ways and passes each end of file on by itself.
func halves(a, b net.Conn) {
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Add(1)
		go func() {
			defer both.Done()
			io.Copy(way[1], way[0])
			if c, ok := way[1].(interface{ CloseWrite() error }); ok {
				c.CloseWrite()
			}
		}()
	}
	both.Wait()
	a.Close()
	b.Close()
}

func main() {
	dir := flag.String("dir", "", "state directory")
	control := flag.String("control", "", "coordination server URL")
	host := flag.String("hostname", "", "host name")
	keyFile := flag.String("authkey-file", "", "file with a pre-auth key")
	ephemeral := flag.Bool("ephemeral", false, "ephemeral node")
	verbose := flag.Bool("v", false, "tsnet's own log on stderr")
	udp := flag.Int("udp-echo", 0, "UDP port to echo on the tailnet addresses")
	var expose list
	flag.Var(&expose, "expose", "TAILNET_PORT=ADDR:PORT, repeatable")
	var forward list
	flag.Var(&forward, "forward", "HOST:PORT of the tailnet to offer on a free port of 127.0.0.1, repeatable")
	flag.Parse()

	log.SetFlags(log.LstdFlags | log.Lmicroseconds)
	s := &tsnet.Server{Dir: *dir, ControlURL: *control, Hostname: *host, Ephemeral: *ephemeral, UserLogf: func(string, ...any) {}}
	if *verbose {
		s.Logf = log.Printf
		s.UserLogf = log.Printf
	}
	if *keyFile != "" {
		key, err := os.ReadFile(*keyFile)
		if err != nil {
			fail("key", err)
		}
		s.AuthKey = strings.TrimSpace(string(key))
	}
	status, err := s.Up(context.Background())
	if err != nil {
		fail("up", err)
	}
	var ips []string
	for _, ip := range status.TailscaleIPs {
		ips = append(ips, ip.String())
	}
	emit("running", map[string]any{"ips": ips, "dns_name": status.Self.DNSName})

	for _, e := range expose {
		port, to, ok := strings.Cut(e, "=")
		if !ok {
			fail("expose", fmt.Errorf("%q: want TAILNET_PORT=ADDR:PORT", e))
		}
		l, err := s.Listen("tcp", ":"+port)
		if err != nil {
			fail("listen", err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					local, err := net.Dial("tcp", to)
					if err != nil {
						c.Close()
						return
					}
					halves(c, local)
				}()
			}
		}()
	}
	if *udp != 0 {
		for _, ip := range status.TailscaleIPs {
			pc, err := s.ListenPacket("udp", netip.AddrPortFrom(ip, uint16(*udp)).String())
			if err != nil {
				fail("udp", err)
			}
			go func() {
				buf := make([]byte, 65536)
				for {
					n, from, err := pc.ReadFrom(buf)
					if err != nil {
						return
					}
					pc.WriteTo(buf[:n], from)
				}
			}()
		}
	}
	for _, to := range forward {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fail("forward", err)
		}
		emit("forward", map[string]any{"to": to, "address": l.Addr().String()})
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					remote, err := s.Dial(context.Background(), "tcp", to)
					if err != nil {
						emit("notice", map[string]any{"message": err.Error()})
						c.Close()
						return
					}
					halves(c, remote)
				}()
			}
		}()
	}
	address, credential, _, err := s.Loopback()
	if err != nil {
		fail("loopback", err)
	}
	emit("socks5", map[string]any{"address": address, "username": "tsnet", "password": credential})

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
	s.Close()
}
