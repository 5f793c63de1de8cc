// DATABASE_URL=jdbc:postgresql://… java -cp postgresql.jar Producer.java QUEUE TEXT…: all jobs in one transaction, or none.
import java.sql.*;

class Producer {
    public static void main(String[] args) throws Exception {
        try (Connection db = DriverManager.getConnection(System.getenv("DATABASE_URL"))) {
            db.setAutoCommit(false);
            try (PreparedStatement call = db.prepareStatement("select oq_enqueue(?, jsonb_build_object('text', ?))")) {
                for (int i = 1; i < args.length; i++) {
                    call.setString(1, args[0]);
                    call.setString(2, args[i]);
                    ResultSet id = call.executeQuery();
                    id.next();
                    System.out.println(id.getLong(1));
                }
            }
            db.commit();
        }
    }
}
