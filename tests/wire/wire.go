// Package wire stands between a client and its PostgreSQL server.
package wire

import (
	"encoding/binary"
	"net"
	"strings"
	"sync"
	"sync/atomic"
)

// Proxy passes connections on to a server, counts the statements in them, and can let them go mute. It
// does not understand TLS.
type Proxy struct {
	listener   net.Listener
	server     string
	statements atomic.Int64
	passing    sync.WaitGroup

	mu    sync.Mutex
	muted *atomic.Bool // of the connections made from now on
	conns []net.Conn
	over  bool
}

// Start listens on a free port for clients of the server at that address. Close it.
func Start(server string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, server: server, muted: new(atomic.Bool)}
	p.passing.Go(p.accept)
	return p, nil
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", p.server)
		if err != nil {
			conn.Close()
			continue
		}
		p.mu.Lock()
		muted := p.muted
		p.conns = append(p.conns, conn, up)
		over := p.over
		p.mu.Unlock()
		if over {
			conn.Close()
			up.Close()
			return
		}
		p.passing.Go(func() { p.pass(up, conn, muted, (&counter{n: &p.statements}).see) })
		p.passing.Go(func() { p.pass(conn, up, muted, nil) })
	}
}

// Addr is where clients connect.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Statements is how many have gone through so far.
func (p *Proxy) Statements() int64 { return p.statements.Load() }

// Mute lets the connections so far carry nothing any more, without a word; new ones do.
func (p *Proxy) Mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted.Store(true)
	p.muted = new(atomic.Bool)
}

// Close ends it with all its connections.
func (p *Proxy) Close() {
	p.listener.Close()
	p.mu.Lock()
	p.over = true
	for _, c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.passing.Wait()
}

func (p *Proxy) pass(to, from net.Conn, muted *atomic.Bool, see func([]byte)) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !muted.Load() {
			if see != nil {
				see(buf[:n])
			}
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			if !muted.Load() {
				to.Close()
			}
			return
		}
	}
}

// counter counts what a client asks to be executed: Query, Execute and FunctionCall messages.
type counter struct {
	n       *atomic.Int64
	started bool
	buf     []byte
}

func (c *counter) see(p []byte) {
	c.buf = append(c.buf, p...)
	for {
		head := 5
		if !c.started {
			head = 4 // the startup message has no type
		}
		if len(c.buf) < head {
			return
		}
		length := int(binary.BigEndian.Uint32(c.buf[head-4:head])) + head - 4
		if len(c.buf) < length {
			return
		}
		if c.started && strings.ContainsRune("QEF", rune(c.buf[0])) {
			c.n.Add(1)
		}
		c.started = true
		c.buf = c.buf[length:]
	}
}
