"""The tables. Forward only: a database written by a newer server is refused, never guessed at."""

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

VERSION = 1
metadata = MetaData()

devices = Table(
    "devices",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("model", String, nullable=False),
    Column("hw", String, nullable=False),
    Column("serial", String, nullable=False),
    Column("udi_di", String, nullable=False, server_default=""),
    Column("state", String, nullable=False),
    Column("release", String, nullable=False, server_default=""),
    Column("slot", String, nullable=False, server_default=""),
    Column("last_seen_utc", String),
    Column("config_wanted", Boolean, nullable=False),
    Column("config_utc", String),
    Column("created_utc", String, nullable=False),
    UniqueConstraint("tenant", "serial"),
)

device_keys = Table(
    "device_keys",
    metadata,
    Column("spki_sha256", String, primary_key=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False, index=True),
    Column("purpose", String, nullable=False),
    Column("status", String, nullable=False),
    Column("not_after_utc", String, nullable=False),
    Column("revoked_utc", String),
    Column("reason", String),
)

device_attributes = Table(
    "device_attributes",
    metadata,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
    Column("updated_utc", String, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("product", String, nullable=False),
    Column("version", String, nullable=False),
    Column("target_path", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("length_bytes", Integer, nullable=False),
    Column("sha1", String, nullable=False),
    Column("md5", String, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("hw", String, nullable=False),
    Column("security_fix", Boolean, nullable=False),
    Column("imported_utc", String, nullable=False),
    UniqueConstraint("tenant", "product", "version"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("release_id", ForeignKey("releases.id"), nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("confirm", Boolean, nullable=False),
    Column("window", String),
    Column("created_utc", String, nullable=False),
    Column("created_by", String, nullable=False),
)

actions = Table(
    "actions",
    metadata,
    # Clients in the field read the id as a 32-bit signed integer; AUTOINCREMENT: an id is never used twice.
    Column("id", Integer, primary_key=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False),
    Column("deployment_id", ForeignKey("deployments.id"), nullable=False, index=True),
    Column("state", String, nullable=False),
    Column("resume_state", String),
    Column("open", Boolean, nullable=False),
    Column("feedback_count", Integer, nullable=False, server_default="0"),
    Column("code", Integer),
    Column("detail", String, nullable=False, server_default=""),
    Column("created_utc", String, nullable=False),
    Column("closed_utc", String),
    sqlite_autoincrement=True,
)
Index("actions_of_device", actions.c.device_id, actions.c.open, actions.c.id)

action_status = Table(
    "action_status",
    metadata,
    Column("action_id", ForeignKey("actions.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("utc", String, nullable=False),
    Column("device_utc_ms", Integer),
    Column("channel", String, nullable=False),
    Column("execution", String, nullable=False),
    Column("finished", String, nullable=False),
    Column("code", Integer),
    Column("details", String, nullable=False),
    Column("progress_cnt", Integer),
    Column("progress_of", Integer),
    Column("digest", String, nullable=False),
)

telemetry_latest = Table(
    "telemetry_latest",
    metadata,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("received_utc", String, nullable=False),
    Column("document", String, nullable=False),
)

telemetry_points = Table(
    "telemetry_points",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False, index=True),
    Column("received_utc", String, nullable=False),
    Column("document", String, nullable=False),
)

audit_streams = Table(
    "audit_streams",
    metadata,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("component", String, primary_key=True),
    Column("next_seq", Integer, nullable=False),
    Column("head_sha256", String, nullable=False),
    Column("state", String, nullable=False),
)

audit_records = Table(
    "audit_records",
    metadata,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("component", String, primary_key=True),
    Column("seq", Integer, primary_key=True),
    # The second version of a forked record is kept beside the first; both are evidence.
    Column("sha256", String, primary_key=True),
    Column("utc", String, nullable=False),
    Column("received_utc", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("record", LargeBinary, nullable=False),
)

server_audit = Table(
    "server_audit",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("utc", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("object", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("fields", String, nullable=False),
    Column("prev_sha256", String, nullable=False),
    Column("sha256", String, nullable=False),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("sha256", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("permissions", String, nullable=False),
    Column("created_utc", String, nullable=False),
    Column("revoked_utc", String),
)

APPEND_ONLY = ("server_audit", "audit_records")
"""Tables that no statement of this program changes or deletes from; triggers make the database say so too."""
