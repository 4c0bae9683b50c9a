"""Results in the formats of others: tables, records of leaderboards, badges, and cards of models."""
