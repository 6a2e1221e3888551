"""What the recorded tables say: pure functions of tables that return small frozen records."""
