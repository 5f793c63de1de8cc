package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func (c *clock) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := c.unready(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{}))
	return mux
}

// unready says which loop is stuck; a standby's tick loop beats as well.
func (c *clock) unready() string {
	var stuck []string
	for _, l := range c.loops {
		limit := staleAfter
		if l.duty.name == "stats" {
			limit += 2 * c.cfg.StatsEvery
		}
		switch age := l.age(); {
		case age < 0:
			stuck = append(stuck, l.duty.name+" has not run yet")
		case age > limit:
			stuck = append(stuck, fmt.Sprintf("%s last ran %s ago", l.duty.name, age.Round(time.Second)))
		}
	}
	return strings.Join(stuck, "; ")
}

// health asks a running daemon.
func health(ctx context.Context, cfg Config, out io.Writer) error {
	if cfg.HTTPAddr == "" {
		return fmt.Errorf("%w: OQ_HTTP_ADDR is empty: there is nobody to ask", errConfig)
	}
	host, port, err := net.SplitHostPort(cfg.HTTPAddr)
	if err != nil {
		return fmt.Errorf("%w: OQ_HTTP_ADDR=%s", errConfig, cfg.HTTPAddr)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.TrimSpace(string(body)))
	}
	_, err = out.Write(body)
	return err
}
