-- The replicated tables. Written only by pistage.core.machine; no default, no clock, no chance in them.
-- Long texts stand last in their rows: SQLite reads a row from its front, and walks all of a text to pass it;
-- and where texts can be long, rows have a rowid, or each comparison of keys would read the whole row.

CREATE TABLE IF NOT EXISTS meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

-- Where the masters are reached; who of them is a voter stands in meta, as consensus wrote it.
CREATE TABLE IF NOT EXISTS master (
  id TEXT PRIMARY KEY,
  url TEXT NOT NULL,
  version TEXT NOT NULL,
  command_version INTEGER NOT NULL,
  at INTEGER NOT NULL
) WITHOUT ROWID;

-- What was answered to a submission that came with a key.
CREATE TABLE IF NOT EXISTS request (
  key TEXT PRIMARY KEY,
  sha256 TEXT NOT NULL,
  at INTEGER NOT NULL,
  runs TEXT NOT NULL -- JSON: [id, number] of each run that it made
);
CREATE INDEX IF NOT EXISTS request_by_age ON request (at, key);

CREATE TABLE IF NOT EXISTS action (
  project TEXT NOT NULL,
  name TEXT NOT NULL,
  version INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  owner TEXT NOT NULL,
  at INTEGER NOT NULL,
  text TEXT NOT NULL,
  PRIMARY KEY (project, name, version)
);

-- The last number given to a run of a pipeline ("#42").
CREATE TABLE IF NOT EXISTS pipeline (
  project TEXT NOT NULL,
  name TEXT NOT NULL,
  last_number INTEGER NOT NULL,
  PRIMARY KEY (project, name)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS run (
  id TEXT PRIMARY KEY,
  project TEXT NOT NULL,
  name TEXT NOT NULL,
  number INTEGER NOT NULL,
  owner TEXT NOT NULL,
  started_by TEXT NOT NULL, -- JSON of its Trigger
  schedule_id TEXT, -- the schedule that made it, and for which of its times
  nominal INTEGER,
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  priority INTEGER NOT NULL,
  queue TEXT NOT NULL,
  concurrency TEXT, -- the group, with its project in front
  concurrency_limit INTEGER NOT NULL, -- how many of the group may run; 0 without a group
  retry_of TEXT, -- the run that this one tries again
  notes TEXT NOT NULL, -- JSON list of what people must know of this run
  cancel_reason TEXT, -- not NULL once somebody asked for its end
  is_pinned INTEGER NOT NULL, -- 1: its output stays, whatever retention says
  output_bytes INTEGER, -- that its steps left, once it has ended
  output_dropped_at INTEGER, -- not NULL once its output is gone
  output_dropped_reason TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  started_at INTEGER,
  finished_at INTEGER,
  plan TEXT NOT NULL, -- JSON of the Plan without its tasks, which stand in task.spec
  source TEXT NOT NULL -- the document as it was submitted
);
CREATE UNIQUE INDEX IF NOT EXISTS run_by_schedule ON run (schedule_id, nominal) WHERE schedule_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS run_by_state ON run (state, id);
CREATE INDEX IF NOT EXISTS run_by_project ON run (project, id);
CREATE INDEX IF NOT EXISTS run_by_project_and_state ON run (project, state, id);
CREATE INDEX IF NOT EXISTS run_by_name ON run (project, name, id);
CREATE INDEX IF NOT EXISTS run_by_group ON run (concurrency, state, id) WHERE concurrency IS NOT NULL;
CREATE INDEX IF NOT EXISTS run_in_queue ON run (queue) WHERE state = 'running';
CREATE UNIQUE INDEX IF NOT EXISTS run_by_number ON run (project, name, number);
-- The last two are the same in each of its rows; with them SQLite can answer from the index alone.
CREATE INDEX IF NOT EXISTS run_with_output
  ON run (project, name, finished_at, id, output_bytes, output_dropped_at, is_pinned)
  WHERE finished_at IS NOT NULL AND output_dropped_at IS NULL AND is_pinned = 0;

CREATE TABLE IF NOT EXISTS task (
  run_id TEXT NOT NULL,
  position INTEGER NOT NULL,
  name TEXT NOT NULL,
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  needs TEXT NOT NULL, -- JSON list of names
  run_when TEXT NOT NULL, -- success, failure or always
  is_skip_planned INTEGER NOT NULL, -- 1: skipped by the plan itself, which holds nobody up
  gang TEXT,
  has_volumes INTEGER NOT NULL, -- 1: what it works on stands on the agent of its gang, and nowhere else
  demand TEXT NOT NULL, -- JSON of its Demand
  queue_timeout_ms INTEGER, -- how long it may wait for a place
  cancel_reason TEXT, -- not NULL once somebody asked for the end of this task alone
  kept_from TEXT, -- the run whose task of this name it stands for
  cpus_milli INTEGER NOT NULL,
  memory_bytes INTEGER NOT NULL,
  gpus INTEGER NOT NULL,
  ready_at INTEGER NOT NULL, -- not to be placed before
  attempts INTEGER NOT NULL,
  failures TEXT NOT NULL, -- JSON: failure class -> how often
  attempt_id TEXT, -- the current attempt, or the last one
  started_at INTEGER,
  finished_at INTEGER,
  spec TEXT NOT NULL, -- JSON of the Task
  PRIMARY KEY (run_id, position)
);
CREATE INDEX IF NOT EXISTS task_by_state ON task (state, run_id);
CREATE INDEX IF NOT EXISTS task_kept ON task (kept_from, run_id) WHERE kept_from IS NOT NULL;

CREATE TABLE IF NOT EXISTS attempt (
  id TEXT PRIMARY KEY,
  run_id TEXT NOT NULL,
  position INTEGER NOT NULL, -- of its task
  number INTEGER NOT NULL,
  agent_id TEXT NOT NULL,
  fence INTEGER NOT NULL, -- the log index of its assignment
  state TEXT NOT NULL, -- queued until the agent accepts it, then running, then how it ended
  failure TEXT,
  exit_code INTEGER,
  reason TEXT NOT NULL,
  runtime TEXT NOT NULL,
  assigned_at INTEGER NOT NULL,
  started_at INTEGER,
  finished_at INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attempt_by_run ON attempt (run_id, position, number);
CREATE INDEX IF NOT EXISTS attempt_by_agent ON attempt (agent_id, state);

CREATE TABLE IF NOT EXISTS step (
  attempt_id TEXT NOT NULL,
  id TEXT NOT NULL,
  state TEXT NOT NULL,
  failure TEXT,
  exit_code INTEGER,
  reason TEXT NOT NULL,
  container TEXT NOT NULL,
  started_at INTEGER,
  finished_at INTEGER,
  stdout_bytes INTEGER,
  stdout_sha256 TEXT,
  stdout_missing INTEGER, -- of those bytes, how many are not kept
  stderr_bytes INTEGER,
  stderr_sha256 TEXT,
  stderr_missing INTEGER,
  PRIMARY KEY (attempt_id, id)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS agent (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  incarnation TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  state TEXT NOT NULL, -- up or lost
  reason TEXT NOT NULL,
  is_draining INTEGER NOT NULL,
  drain_until INTEGER, -- when what it runs is to be stopped
  info TEXT NOT NULL, -- JSON of its AgentInfo
  cpus_milli INTEGER NOT NULL,
  memory_bytes INTEGER NOT NULL,
  gpus INTEGER NOT NULL,
  slots INTEGER NOT NULL,
  at INTEGER NOT NULL -- of its last change
) WITHOUT ROWID;

-- Queues that something was said about; others have the defaults.
CREATE TABLE IF NOT EXISTS queue (
  name TEXT PRIMARY KEY,
  priority INTEGER NOT NULL,
  run_limit INTEGER, -- how many of its runs may run at one time
  placing TEXT NOT NULL -- spread or pack
) WITHOUT ROWID;

-- What is to be run by itself, and when.
CREATE TABLE IF NOT EXISTS schedule (
  id TEXT PRIMARY KEY,
  project TEXT NOT NULL,
  name TEXT NOT NULL,
  definition TEXT NOT NULL, -- under whose name it was set
  owner TEXT NOT NULL,
  fence INTEGER NOT NULL, -- the log index of its last change; who knows an older one does not know it
  is_enabled INTEGER NOT NULL,
  paused_reason TEXT NOT NULL,
  decided_until INTEGER NOT NULL, -- all its times up to here are decided
  created_at INTEGER NOT NULL,
  at INTEGER NOT NULL, -- of its last change
  spec TEXT NOT NULL, -- JSON of the Schedule
  action TEXT, -- what is run, if that is not the source
  start_node TEXT,
  sha256 TEXT NOT NULL, -- of the source
  source TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS schedule_by_name ON schedule (project, name);
CREATE INDEX IF NOT EXISTS schedule_by_definition ON schedule (project, definition);

-- What became of the latest times of schedules; of times that were missed, one row for neighbours.
CREATE TABLE IF NOT EXISTS fire (
  schedule_id TEXT NOT NULL,
  nominal INTEGER NOT NULL,
  until INTEGER NOT NULL, -- the last of the times that it stands for
  count INTEGER, -- how many they are; NULL for more than anybody counted
  outcome TEXT NOT NULL, -- ran, skipped, missed or failed
  run_id TEXT,
  at INTEGER NOT NULL,
  reason TEXT NOT NULL,
  PRIMARY KEY (schedule_id, nominal)
) WITHOUT ROWID;

-- What runs when somebody outside says so, signed with the secret.
CREATE TABLE IF NOT EXISTS webhook (
  id TEXT PRIMARY KEY,
  project TEXT NOT NULL,
  name TEXT NOT NULL,
  owner TEXT NOT NULL,
  fence INTEGER NOT NULL, -- the log index of its last change
  created_at INTEGER NOT NULL,
  at INTEGER NOT NULL, -- of its last change
  spec TEXT NOT NULL, -- JSON of the Webhook
  action TEXT, -- what is run, if that is not the source
  secret TEXT NOT NULL, -- as it is: a signature can be made with nothing less
  source TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS webhook_by_name ON webhook (project, name);

-- Deliveries that made a run, by each of the keys by which they are known again.
CREATE TABLE IF NOT EXISTS webhook_delivery (
  webhook_id TEXT NOT NULL,
  key TEXT NOT NULL,
  at INTEGER NOT NULL,
  until INTEGER NOT NULL, -- when it may be forgotten
  run_id TEXT NOT NULL,
  number INTEGER NOT NULL,
  PRIMARY KEY (webhook_id, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS webhook_delivery_by_age ON webhook_delivery (until);

-- Definitions that are run when runs of others have ended.
CREATE TABLE IF NOT EXISTS after_rule (
  id TEXT PRIMARY KEY,
  project TEXT NOT NULL,
  definition TEXT NOT NULL,
  owner TEXT NOT NULL,
  fence INTEGER NOT NULL, -- the log index of its last change
  created_at INTEGER NOT NULL,
  at INTEGER NOT NULL, -- of its last change
  spec TEXT NOT NULL, -- JSON of the AfterRule
  source TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS after_rule_by_definition ON after_rule (project, definition);

-- After runs of which pipelines each of them may be due.
CREATE TABLE IF NOT EXISTS after_pipeline (
  project TEXT NOT NULL,
  pipeline TEXT NOT NULL,
  after_id TEXT NOT NULL,
  PRIMARY KEY (project, pipeline, after_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS after_pipeline_of ON after_pipeline (after_id);

-- What is due after a run that has ended, and of the latest what became of it.
CREATE TABLE IF NOT EXISTS after_due (
  after_id TEXT NOT NULL,
  run_id TEXT NOT NULL, -- that has ended
  at INTEGER NOT NULL, -- of that end, then of the decision
  depth INTEGER NOT NULL, -- how many runs came after each other, with the one that is due
  outcome TEXT NOT NULL, -- '' while it is due; then ran, skipped or failed
  made_run_id TEXT,
  reason TEXT NOT NULL,
  PRIMARY KEY (after_id, run_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS after_due_now ON after_due (at, run_id, after_id) WHERE outcome = '';
CREATE INDEX IF NOT EXISTS after_due_by_age ON after_due (after_id, at, run_id);

-- Who is told of runs that end; the spec has what nobody may see.
CREATE TABLE IF NOT EXISTS receiver (
  project TEXT NOT NULL,
  name TEXT NOT NULL,
  owner TEXT NOT NULL,
  at INTEGER NOT NULL, -- of its last change
  spec TEXT NOT NULL, -- JSON of the Receiver
  PRIMARY KEY (project, name)
);

-- Notices of runs that have ended, each to one receiver.
CREATE TABLE IF NOT EXISTS delivery (
  run_id TEXT NOT NULL,
  position INTEGER NOT NULL, -- among those of the run, from 1
  project TEXT NOT NULL,
  pipeline TEXT NOT NULL,
  receiver TEXT, -- NULL: the plan says where to
  notify INTEGER, -- which of those of the plan it is, if it is one
  state TEXT NOT NULL, -- waiting, delivered or given_up
  tries INTEGER NOT NULL,
  due_at INTEGER, -- of one that waits: when it is tried next
  created_at INTEGER NOT NULL,
  ended_at INTEGER,
  status INTEGER, -- of the last answer, if there was one
  reason TEXT NOT NULL,
  PRIMARY KEY (run_id, position)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS delivery_waiting ON delivery (created_at, run_id, position) WHERE state = 'waiting';

-- How long output is kept, where something was said about it; '*' is for all other pipelines of the project.
CREATE TABLE IF NOT EXISTS retention (
  project TEXT NOT NULL,
  name TEXT NOT NULL,
  age_ms INTEGER, -- NULL: no such bound
  bytes_max INTEGER,
  runs_max INTEGER,
  PRIMARY KEY (project, name)
) WITHOUT ROWID;

-- Runs whose output is in an archive; of one that was dropped since, it is to be deleted there.
CREATE TABLE IF NOT EXISTS archived (
  run_id TEXT PRIMARY KEY,
  url TEXT NOT NULL,
  place TEXT NOT NULL, -- in the run's directory there: of the one leader, and the one try, that stored it
  at INTEGER NOT NULL
) WITHOUT ROWID;

-- What happened to a run, in order; `id` is the log index and a counter, the same on every master.
CREATE TABLE IF NOT EXISTS event (
  id INTEGER PRIMARY KEY,
  run_id TEXT NOT NULL,
  at INTEGER NOT NULL,
  kind TEXT NOT NULL,
  fields TEXT NOT NULL -- JSON
);
CREATE INDEX IF NOT EXISTS event_by_run ON event (run_id, id);
