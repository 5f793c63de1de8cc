# DATABASE_URL=… ruby producer.rb QUEUE TEXT…: all jobs in one transaction, or none.
require "json"
require "pg"
queue, *texts = ARGV
PG.connect(ENV.fetch("DATABASE_URL")) do |db|
  db.transaction do
    texts.each do |text|
      puts db.exec_params("select oq_enqueue($1, $2)", [queue, { text: text }.to_json]).getvalue(0, 0)
    end
  end
end
