-- Times are milliseconds since the epoch, flags are 0 or 1, documents are JSON in TEXT.

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value BIGINT NOT NULL
) WITHOUT ROWID;

INSERT INTO counters (name, value) VALUES ('resource_version', 0), ('ping', 0);

CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

-- Nodes. What changes with every heartbeat is apart, so that a heartbeat does not rewrite the wide row.

CREATE TABLE nodes (
    name             TEXT PRIMARY KEY,
    uid              TEXT NOT NULL UNIQUE,
    spec             TEXT NOT NULL,
    meta_labels      TEXT NOT NULL,
    annotations      TEXT NOT NULL,
    generation       BIGINT NOT NULL,
    config_version   BIGINT NOT NULL,
    resource_version BIGINT NOT NULL,
    registered_at    BIGINT,
    public_key       BLOB,
    boot_id          TEXT,
    capability       TEXT,
    capability_hash  TEXT,
    agent_labels     TEXT NOT NULL,
    agent_version    TEXT,
    acked_version    BIGINT,
    applied_version  BIGINT,
    ack_status       TEXT,
    ack_error        TEXT,
    effective_hash   TEXT,
    conditions       TEXT NOT NULL,
    created_at       BIGINT NOT NULL
);

CREATE TABLE node_liveness (
    name          TEXT PRIMARY KEY REFERENCES nodes (name) ON DELETE CASCADE,
    last_seen_at  BIGINT,
    last_claim_at BIGINT,
    slots         BIGINT NOT NULL,
    not_ready     TEXT
) WITHOUT ROWID;

CREATE TABLE capability_snapshots (
    node          TEXT NOT NULL REFERENCES nodes (name) ON DELETE CASCADE,
    version       BIGINT NOT NULL,
    at            BIGINT NOT NULL,
    hash          TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    report        TEXT NOT NULL,
    PRIMARY KEY (node, version)
);

-- Tokens: hashes of secrets, never secrets.

CREATE TABLE join_tokens (
    id          TEXT PRIMARY KEY,
    secret_hash BLOB NOT NULL UNIQUE,
    description TEXT NOT NULL,
    expires_at  BIGINT,
    max_uses    BIGINT,
    uses        BIGINT NOT NULL,
    replaces    TEXT,
    created_at  BIGINT NOT NULL,
    revoked_at  BIGINT
);

CREATE TABLE api_tokens (
    id          TEXT PRIMARY KEY,
    secret_hash BLOB NOT NULL UNIQUE,
    name        TEXT NOT NULL,
    role        TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT
);

-- A requirement class is a set of static predicates on nodes. A lane is a class, a queue and an amount of reserved
-- resources: all jobs of a lane fit a node or none does, so a lane that does not fit is passed over as a whole.

CREATE TABLE classes (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    hash       TEXT NOT NULL UNIQUE,
    predicates TEXT NOT NULL
);

CREATE TABLE lanes (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    class_id     BIGINT NOT NULL REFERENCES classes (id),
    queue        TEXT NOT NULL,
    cpu_millis   BIGINT NOT NULL,
    memory_bytes BIGINT NOT NULL,
    gpus         BIGINT NOT NULL,
    UNIQUE (class_id, queue, cpu_millis, memory_bytes, gpus)
);

-- Jobs. Of ready_rank and due_at at most one is set: ready_rank while a job can be claimed (priority and age as one
-- ascending number), due_at while only the time keeps it from that. Claims look at nothing else.

CREATE TABLE jobs (
    id                  INTEGER PRIMARY KEY,
    uid                 TEXT NOT NULL UNIQUE,
    namespace           TEXT NOT NULL,
    name                TEXT NOT NULL,
    spec_hash           TEXT NOT NULL,
    queue               TEXT NOT NULL,
    priority            BIGINT NOT NULL,
    class_id            BIGINT NOT NULL,
    lane_id             BIGINT NOT NULL,
    cpu_millis          BIGINT NOT NULL,
    memory_bytes        BIGINT NOT NULL,
    gpus                BIGINT NOT NULL,
    offline             TEXT,
    ttl_ms              BIGINT,
    suspend             BIGINT NOT NULL,
    created_at          BIGINT NOT NULL,
    generation          BIGINT NOT NULL,
    resource_version    BIGINT NOT NULL,
    ready_rank          BIGINT,
    due_at              BIGINT,
    phase               TEXT NOT NULL,
    epoch               BIGINT NOT NULL,
    attempts            BIGINT NOT NULL,
    lost_attempts       BIGINT NOT NULL,
    failures            BIGINT NOT NULL,
    logs_complete       BIGINT NOT NULL,
    queued_at           BIGINT,
    not_before          BIGINT,
    started_at          BIGINT,
    finished_at         BIGINT,
    ttl_at              BIGINT,
    cancel_requested_at BIGINT,
    exit_code           BIGINT,
    node                TEXT,
    reason              TEXT,
    message             TEXT,
    steps               TEXT NOT NULL,
    unenforced          TEXT NOT NULL,
    UNIQUE (namespace, name)
);

-- What is claimed next, over all lanes and in one lane.
CREATE INDEX jobs_ready ON jobs (ready_rank, lane_id) WHERE ready_rank IS NOT NULL;
CREATE INDEX jobs_lane_ready ON jobs (lane_id, ready_rank) WHERE ready_rank IS NOT NULL;
-- What becomes ready next.
CREATE INDEX jobs_due ON jobs (due_at) WHERE due_at IS NOT NULL;
-- Queue statistics without touching the rows, and lists of what has not ended.
CREATE INDEX jobs_live ON jobs (phase, queue, priority, suspend, not_before, queued_at, finished_at)
    WHERE finished_at IS NULL;
CREATE INDEX jobs_dead ON jobs (queue, priority, phase, reason) WHERE reason = 'AttemptsExhausted';
-- Lists, newest first: the row's id follows in each.
CREATE INDEX jobs_ended ON jobs (phase) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_namespace ON jobs (namespace);
CREATE INDEX jobs_queue ON jobs (queue);
CREATE INDEX jobs_ttl ON jobs (ttl_at) WHERE ttl_at IS NOT NULL;

-- What of a job never or seldom changes, apart so that a transition does not rewrite it.
CREATE TABLE job_bodies (
    job_id      INTEGER PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    spec        TEXT NOT NULL,
    labels      TEXT NOT NULL,
    annotations TEXT NOT NULL
);

CREATE TABLE job_labels (
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    job_id BIGINT NOT NULL,
    PRIMARY KEY (key, value, job_id)
) WITHOUT ROWID;

CREATE TABLE job_inputs (
    job_id BIGINT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES inputs (digest),
    PRIMARY KEY (job_id, digest)
) WITHOUT ROWID;

CREATE INDEX job_inputs_digest ON job_inputs (digest);

CREATE TABLE inputs (
    digest     TEXT PRIMARY KEY,
    size       BIGINT NOT NULL,
    object_key TEXT NOT NULL,
    put_at     BIGINT NOT NULL
);

CREATE INDEX inputs_put ON inputs (put_at);

CREATE TABLE idempotency (
    key          TEXT PRIMARY KEY,
    request_hash TEXT NOT NULL,
    job_uid      TEXT NOT NULL,
    keep_until   BIGINT NOT NULL
) WITHOUT ROWID;

CREATE INDEX idempotency_keep ON idempotency (keep_until);

-- Attempts. An attempt is live while ended_at is null.

CREATE TABLE attempts (
    job_id        BIGINT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    epoch         BIGINT NOT NULL,
    number        BIGINT NOT NULL,
    node          TEXT NOT NULL,
    phase         TEXT NOT NULL,
    reason        TEXT,
    message       TEXT,
    exit_code     BIGINT,
    claimed_at    BIGINT NOT NULL,
    started_at    BIGINT,
    ended_at      BIGINT,
    lease_until   BIGINT NOT NULL,
    last_sequence BIGINT,
    received      BIGINT NOT NULL,
    offline       TEXT NOT NULL,
    cpu_millis    BIGINT NOT NULL,
    memory_bytes  BIGINT NOT NULL,
    gpus          BIGINT NOT NULL,
    waiting       BIGINT NOT NULL,
    request_id    TEXT NOT NULL,
    PRIMARY KEY (job_id, epoch)
) WITHOUT ROWID;

CREATE INDEX attempts_node ON attempts (node) WHERE ended_at IS NULL;
CREATE INDEX attempts_lease ON attempts (lease_until) WHERE ended_at IS NULL;

CREATE TABLE records (
    job_id      BIGINT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    epoch       BIGINT NOT NULL,
    sequence    BIGINT NOT NULL,
    kind        TEXT NOT NULL,
    at          BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    superseded  BIGINT NOT NULL,
    step        BIGINT,
    stream      TEXT,
    position    BIGINT,
    object_key  TEXT,
    object_len  BIGINT,
    json        TEXT,
    bytes       BLOB,
    PRIMARY KEY (job_id, epoch, sequence)
) WITHOUT ROWID;

CREATE INDEX records_superseded ON records (received_at) WHERE superseded = 1;

CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      BIGINT NOT NULL,
    job_uid TEXT,
    node    TEXT,
    level   TEXT NOT NULL,
    source  TEXT NOT NULL,
    reason  TEXT NOT NULL,
    message TEXT NOT NULL,
    data    TEXT,
    owned   BIGINT NOT NULL -- whether it goes with its job
);

CREATE INDEX events_job ON events (job_uid) WHERE job_uid IS NOT NULL;
CREATE INDEX events_unowned ON events (at) WHERE owned = 0;

-- Keys of bodies in the object store that nothing names any more and that are still to be removed there.
CREATE TABLE body_removals (
    key      TEXT PRIMARY KEY,
    added_at BIGINT NOT NULL
) WITHOUT ROWID;

CREATE TABLE templates (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace        TEXT NOT NULL,
    name             TEXT NOT NULL,
    uid              TEXT NOT NULL UNIQUE,
    version          TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    generation       BIGINT NOT NULL,
    resource_version BIGINT NOT NULL,
    UNIQUE (namespace, name)
);

CREATE TABLE template_versions (
    template_id BIGINT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    version     TEXT NOT NULL,
    spec        TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (template_id, version)
);
