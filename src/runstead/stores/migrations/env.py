"""What Alembic runs around the migrations, on the connection it is given by `runstead.stores.migration`."""

from alembic import context

from runstead.stores.schedule_tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite does it as well, with the transaction begun by hand
    transaction_per_migration=False,
    render_as_batch=True,  # SQLite changes most of a table only by copying it
)
with context.begin_transaction():
    context.run_migrations()
