<?php // DATABASE_URL=… php worker.php QUEUE: counts the words of each job's text.
[$queue, $me, $stop, $asleep] = [$argv[1], 'php-' . getmypid(), false, false];
pcntl_async_signals(true);
pcntl_signal(SIGTERM, function () use (&$stop) { $stop = true; });
$db = pg_connect(getenv('DATABASE_URL')) or exit(1);
$sql = fn($q, ...$args) => pg_query_params($db, $q, $args) ?: exit(1);
while (!$stop) {
    $job = pg_fetch_row($sql('select job_id, lease_token, payload from oq_lease($1, $2, 30)', $queue, $me));
    if (!$job) { // announce it, look once more, then sleep
        $ready = [pg_socket($db)];
        if (!$asleep) $sql('select oq_listen($1)', $queue);
        elseif (!pg_get_notify($db)) @stream_select($ready, $none, $none, 1);
        $asleep = true;
        continue;
    }
    if ($asleep) $sql('select oq_unlisten($1)', $queue);
    $asleep = false;
    try {
        $text = json_decode($job[2], true, 512, JSON_THROW_ON_ERROR)['text'] ?? throw new Exception('no text');
        $result = ['words' => count(preg_split('/\s+/u', $text, -1, PREG_SPLIT_NO_EMPTY))];
        $sql('select oq_ack($1, $2, $3)', $job[0], $job[1], json_encode($result));
    } catch (Throwable $e) {
        $sql('select oq_nack($1, $2, $3)', $job[0], $job[1], $e->getMessage());
    }
}
