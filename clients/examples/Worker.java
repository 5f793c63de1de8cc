// DATABASE_URL=jdbc:postgresql://… java -cp postgresql.jar Worker.java QUEUE: counts the words of each job's text.
import java.sql.*;

class Worker {
    static volatile boolean stop;

    public static void main(String[] args) throws Exception {
        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> { stop = true; try { main.join(); } catch (InterruptedException e) { } }));
        boolean asleep = false;
        try (Connection db = DriverManager.getConnection(System.getenv("DATABASE_URL"))) {
            while (!stop) {
                ResultSet job = ask(db, "select job_id, lease_token, payload->>'text' from oq_lease(?, 'java', 30)", args[0]);
                if (!job.next()) { // announce it, look once more, then sleep
                    if (asleep) db.unwrap(org.postgresql.PGConnection.class).getNotifications(1000);
                    else ask(db, "select oq_listen(?)", args[0]);
                    asleep = true;
                    continue;
                }
                if (asleep) ask(db, "select oq_unlisten(?)", args[0]);
                asleep = false;
                long id = job.getLong(1), token = job.getLong(2);
                try {
                    int words = job.getString(3).strip().split("\\s+").length;
                    ask(db, "select oq_ack(?, ?, jsonb_build_object('words', ?))", id, token, words);
                } catch (RuntimeException e) {
                    ask(db, "select oq_nack(?, ?, ?)", id, token, e.toString());
                }
            }
        }
    }

    static ResultSet ask(Connection db, String sql, Object... args) throws SQLException {
        PreparedStatement call = db.prepareStatement(sql);
        call.closeOnCompletion();
        for (int i = 0; i < args.length; i++) call.setObject(i + 1, args[i]);
        return call.executeQuery();
    }
}
