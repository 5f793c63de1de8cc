package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// clock is a running daemon.
type clock struct {
	cfg       Config
	log       zerolog.Logger
	registry  *prometheus.Registry
	databases []*database
	listener  net.Listener // of OQ_HTTP_ADDR; nil: run makes it

	mu      sync.Mutex
	fatal   error
	stopped context.CancelFunc
}

func newClock(cfg Config, log zerolog.Logger) (*clock, error) {
	sources, err := cfg.sources()
	if err != nil {
		return nil, err
	}
	c := &clock{cfg: cfg, log: log, registry: newRegistry()}
	for _, s := range sources {
		c.databases = append(c.databases, newDatabase(cfg, s, len(sources) > 1, log, c.registry))
	}
	return c, nil
}

func run(ctx context.Context, cfg Config, log zerolog.Logger) error {
	c, err := newClock(cfg, log)
	if err != nil {
		return err
	}
	return c.run(ctx)
}

func (c *clock) run(ctx context.Context) error {
	cfg, log := c.cfg, c.log
	ctx, c.stopped = context.WithCancel(ctx)
	defer c.stopped()

	if c.listener == nil {
		var err error
		if c.listener, err = listen(cfg); err != nil {
			return err
		}
	}
	var wait sync.WaitGroup
	if listener := c.listener; listener != nil {
		server := &http.Server{Handler: c.handler(), ReadHeaderTimeout: 5 * time.Second}
		wait.Go(func() {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				c.end(fmt.Errorf("http: %w", err))
			}
		})
		defer func() {
			closeCtx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			_ = server.Shutdown(closeCtx)
			wait.Wait()
		}()
		log.Info().Stringer("addr", listener.Addr()).Msg("http")
	}
	log.Info().Str("version", Version).Str("schema", cfg.Schema).Int("databases", len(c.databases)).Msg("started")
	var loops sync.WaitGroup
	for _, d := range c.databases {
		for _, l := range d.loops {
			loops.Go(func() {
				if err := l.run(ctx); err != nil {
					c.end(err)
				}
			})
		}
	}
	loops.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fatal == nil {
		log.Info().Msg("stopped")
	}
	return c.fatal
}

// listen is nil where no HTTP is wanted.
func listen(cfg Config) (net.Listener, error) {
	if cfg.HTTPAddr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", cfg.HTTPAddr)
	if err != nil {
		return nil, fmt.Errorf("OQ_HTTP_ADDR=%s: %w", cfg.HTTPAddr, err)
	}
	return l, nil
}

// end stops the whole process for the first reason given.
func (c *clock) end(err error) {
	c.mu.Lock()
	if c.fatal == nil {
		c.fatal = err
	}
	c.mu.Unlock()
	c.stopped()
}
