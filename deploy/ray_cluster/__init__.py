"""Workers as actors of Ray, in a placement group. Ray carries life only: who exists, and where."""
