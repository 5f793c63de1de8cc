package daemon

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are those of one database.
type metrics struct {
	register prometheus.Registerer // puts the database's label on all
	doneRows *prometheus.CounterVec
	failures *prometheus.CounterVec
	tickTime prometheus.Histogram
	leading  prometheus.Gauge
	jobs     *prometheus.GaugeVec
	oldest   *prometheus.GaugeVec
	shown    map[string]bool // the queues in both
}

// newRegistry has what is the process's own.
func newRegistry() *prometheus.Registry {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "openqueue_build_info", Help: "1, with the version.",
		ConstLabels: prometheus.Labels{"version": Version, "go": runtime.Version()},
	})
	build.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

func newMetrics(register prometheus.Registerer) *metrics {
	m := &metrics{
		register: register,
		doneRows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "openqueue_duty_done_total", Help: "What each duty of oq_tick has done.",
		}, []string{"duty"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "openqueue_loop_failures_total", Help: "Failed runs of a loop, and warnings of the server.",
		}, []string{"loop"}),
		tickTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "openqueue_tick_duration_seconds", Help: "Time of one oq_tick.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
		leading: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "openqueue_leader", Help: "1 where this daemon runs the duties.",
		}),
		jobs: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "openqueue_queue_jobs", Help: "Jobs of a queue by state.",
		}, []string{"queue", "state"}),
		oldest: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "openqueue_queue_oldest_ready_seconds", Help: "Age of the oldest ready job.",
		}, []string{"queue"}),
	}
	m.register.MustRegister(m.doneRows, m.failures, m.tickTime, m.leading, m.jobs, m.oldest)
	return m
}

func (m *metrics) watch(l *loop) {
	m.register.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "openqueue_loop_last_success_timestamp_seconds", Help: "When a loop last succeeded; 0: never.",
		ConstLabels: prometheus.Labels{"loop": l.duty.name},
	}, func() float64 {
		if beat := l.beat.Load(); beat != nil {
			return float64(beat.UnixNano()) / 1e9
		}
		return 0
	}))
}

func (m *metrics) ready(is func() bool) {
	m.register.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "openqueue_database_up", Help: "1 where all loops of the database ran in time.",
	}, func() float64 {
		if is() {
			return 1
		}
		return 0
	}))
}

func (m *metrics) failed(loop string)        { m.failures.WithLabelValues(loop).Inc() }
func (m *metrics) done(duty string, n int64) { m.doneRows.WithLabelValues(duty).Add(float64(n)) }
func (m *metrics) ticked(d time.Duration)    { m.tickTime.Observe(d.Seconds()) }
func (m *metrics) lead(yes bool) {
	if yes {
		m.leading.Set(1)
	} else {
		m.leading.Set(0)
	}
}

// queues shows what there is, and a queue that was dropped no more. One that stays is there at any moment: it
// may be that somebody scrapes.
func (m *metrics) queues(all []queueStats) {
	shown := map[string]bool{}
	for _, q := range all {
		shown[q.Queue] = true
		for state, n := range map[string]int64{
			"ready": q.Ready, "scheduled": q.Scheduled, "waiting": q.Waiting, "leased": q.Leased,
			"dead": q.Dead, "completed": q.Completed,
		} {
			m.jobs.WithLabelValues(q.Queue, state).Set(float64(n))
		}
		m.oldest.WithLabelValues(q.Queue).Set(q.Oldest)
	}
	for queue := range m.shown {
		if !shown[queue] {
			m.jobs.DeletePartialMatch(prometheus.Labels{"queue": queue})
			m.oldest.DeleteLabelValues(queue)
		}
	}
	m.shown = shown
}
