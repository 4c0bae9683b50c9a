"""Results in other formats: tables, records of leaderboards, badges, and model cards."""
