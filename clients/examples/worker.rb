# DATABASE_URL=… ruby worker.rb QUEUE: counts the words of each job's text.
require "json"
require "pg"
queue, me, stop, asleep = ARGV.fetch(0), "ruby-#{Process.pid}", false, false
trap("TERM") { stop = true }
db = PG.connect(ENV.fetch("DATABASE_URL"))
until stop
  job = db.exec_params("select job_id, lease_token, payload from oq_lease($1, $2, 30)", [queue, me]).first
  if job.nil? # announce it, look once more, then sleep
    asleep ? db.wait_for_notify(1) : db.exec_params("select oq_listen($1)", [queue])
    asleep = true
    next
  end
  db.exec_params("select oq_unlisten($1)", [queue]) if asleep
  asleep = false
  lease = job.values_at("job_id", "lease_token")
  begin
    result = { words: JSON.parse(job["payload"]).fetch("text").split.size }
  rescue StandardError => e
    db.exec_params("select oq_nack($1, $2, $3)", [*lease, e.message])
  else
    db.exec_params("select oq_ack($1, $2, $3)", [*lease, result.to_json])
  end
end
