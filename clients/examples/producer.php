<?php // DATABASE_URL=… php producer.php QUEUE TEXT…: all jobs in one transaction, or none.
$db = pg_connect(getenv('DATABASE_URL')) or exit(1);
pg_query($db, 'begin') or exit(1);
foreach (array_slice($argv, 2) as $text) {
    $payload = json_encode(['text' => $text], JSON_THROW_ON_ERROR);
    $id = pg_query_params($db, 'select oq_enqueue($1, $2)', [$argv[1], $payload]) or exit(1);
    echo pg_fetch_result($id, 0, 0), "\n";
}
pg_query($db, 'commit') or exit(1);
