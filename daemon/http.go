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
		ready, body := c.readiness()
		if !ready {
			http.Error(w, body, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, body)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.registry, promhttp.HandlerOpts{}))
	return mux
}

// readiness is ready only when every database is; of several it has a line each.
func (c *clock) readiness() (ready bool, body string) {
	ready = true
	var lines []string
	for _, d := range c.databases {
		line := "ready"
		if why := d.unready(); why != "" {
			ready, line = false, why
		}
		if len(c.databases) > 1 {
			line = d.label + ": " + line
		}
		lines = append(lines, line)
	}
	return ready, strings.Join(lines, "\n")
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
	direct := http.Client{Transport: &http.Transport{}} // by no proxy of the environment's
	resp, err := direct.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.TrimSpace(string(body)))
	}
	_, err = out.Write(body)
	return err
}
