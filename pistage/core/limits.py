"""A limit on everything, in one table, each with its reason.

A limit that an operator may move is a configuration key instead, with its default and reason in `config`.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- documents -------------------------------------------------------------------------------------------
DOCUMENT_BYTES_MAX: Final = 1 * MIB  # a pipeline is written by people; past this it is data
DOCUMENT_DEPTH_MAX: Final = 64  # YAML loaders recurse: the C one crashes at 25 KB of "["
DOCUMENT_NODES_MAX: Final = 20_000  # keeps a parse under 100 ms on a slow core
DEP_DEPTH_MAX: Final = 16  # nobody reads a chain of actions longer than that
PLAN_STEPS_MAX: Final = 10_000  # one action that depends twice on another doubles at each level
PLAN_TASKS_MAX: Final = 2_000
PLAN_BYTES_MAX: Final = 4 * MIB  # a plan is one entry of the replicated log
SCRIPT_BYTES_MAX: Final = 1 * MIB  # of code, and of what it reads: past this it is data, or a project
SCRIPT_DOCUMENT_BYTES_MAX: Final = 4 * MIB  # a script as a definition: its code escaped, what it reads in base64
SCRIPT_ARGUMENT_BYTES_MAX: Final = 120_000  # the kernel takes no single word of 128 KiB
SCRIPT_ARGUMENTS_BYTES_MAX: Final = 512 * KIB  # with the environment they must stay below two megabytes
SCRIPT_REQUIREMENTS_MAX: Final = 200
PACKAGES_KEPT_MAX: Final = 32  # sets of requirements that an agent keeps; the longest unused goes
PACKAGES_TIMEOUT_S: Final = 1_800.0  # as long as a pull
TEMPLATE_BYTES_MAX: Final = 64 * KIB  # of template text in one value
TEMPLATE_OUTPUT_BYTES_MAX: Final = 1 * MIB  # of rendered text in one value
NAME_CHARS_MAX: Final = 200  # names are shown in tables
PARAMETERS_MAX: Final = 1_000
FINDINGS_MAX: Final = 100  # a reader fixes ten at a time
INPUTS_MAX: Final = 100  # of a definition; a form of more is a document
INPUT_OPTIONS_MAX: Final = 200  # of one input; past this it is a search
INPUT_PATTERN_BYTES_MAX: Final = 1_000
INPUT_PATTERN_MEMORY_BYTES_MAX: Final = 256 * KIB  # compiled, with its states: at most 1 ms to make
INPUT_VALUE_BYTES_MAX: Final = 64 * KIB  # it is also a variable of the environment, where Linux takes 128
INPUT_ITEMS_MAX: Final = 1_000  # of a list
INPUTS_BYTES_MAX: Final = 256 * KIB  # of all that is given together; Linux takes 2 MiB of arguments and environment

# --- execution -------------------------------------------------------------------------------------------
TASK_TIMEOUT_DEFAULT_S: Final = 3_600
TASK_TIMEOUT_MAX_S: Final = 7 * 24 * 3_600
RETRY_MAX: Final = 100
STEP_RETRY_MAX: Final = 100
RETRY_MEMORY_FACTOR_MAX: Final = 10  # more than tenfold is a wrong limit, not a growing need
CONCURRENCY_MAX: Final = 10_000  # runs of one group at one time; past this it limits nothing
RETRY_FAILURE_DEFAULT: Final = 1  # the seed promises an automatic retry
RETRY_INFRASTRUCTURE_DEFAULT: Final = 3
SERVICE_READY_TIMEOUT_S: Final = 120
AMOUNT_MAX: Final = 1 << 53  # of a resource: exact in JSON and SQLite; nobody has as much
PIDS_MAX: Final = 16_384  # a fork bomb in a step must not take the machine with it
REASON_CHARS_MAX: Final = 2_000

# --- HTTP ------------------------------------------------------------------------------------------------
REQUEST_BODY_BYTES_MAX: Final = 8 * MIB
REQUEST_HEADER_TIMEOUT_S: Final = 10.0
REQUEST_BODY_RATE_MIN_BYTES_S: Final = 1 * KIB  # slower than this is an attack or a dead link
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 500
IDEMPOTENCY_KEY_CHARS_MAX: Final = 200
IDEMPOTENCY_KEPT_MS: Final = 24 * 3_600 * 1_000
SSE_HEARTBEAT_S: Final = 15.0

# --- many runs in one submission -----------------------------------------------------------------------------
BATCH_RUNS_MAX: Final = 1_000  # one entry of the log: every master is at it for some 20 ms, and nothing else goes on
BATCH_TASKS_MAX: Final = 20_000  # of all its runs; each is a row and an event
BATCH_ROWS_BYTES_MAX: Final = 32 * MIB  # runs share a plan in the log, but each has a copy of it in the state
BATCH_TEXT_BYTES_MAX: Final = 2 * MIB  # the document, once for each set of parameters: a few seconds of planning

# --- schedules -------------------------------------------------------------------------------------------
SCHEDULES_MAX: Final = 20_000  # of the cluster; a leader knows them all by heart
SCHEDULES_OF_DEFINITION_MAX: Final = 20
SCHEDULE_WITH_BYTES_MAX: Final = 64 * KIB  # a leader has that of all schedules in memory
SCHEDULE_QUEUED_MAX: Final = 100  # runs of one schedule that wait for each other; then its times are passed over
FIRES_KEPT: Final = 200  # of a schedule's history; the runs are kept as any others
FIRES_AT_ONCE: Final = 100  # in one command: every master is at it for some 20 ms, and nothing else goes on

# --- triggers --------------------------------------------------------------------------------------------
EXPRESSION_CHARS_MAX: Final = 500
EXPRESSION_DEPTH_MAX: Final = 16
WEBHOOKS_MAX: Final = 1_000  # of the cluster
WEBHOOK_CHARS_MAX: Final = 64 * KIB  # of what it maps and gives
WEBHOOK_EVENTS_MAX: Final = 100
WEBHOOK_SECRET_CHARS_MIN: Final = 16
WEBHOOK_SECRET_CHARS_MAX: Final = 200
WEBHOOK_BODY_BYTES_MAX: Final = 1 * MIB  # anybody may send one, and it is held whole until it is found to be signed
WEBHOOK_BODY_S: Final = 10.0  # then the place is another's
WEBHOOKS_AT_ONCE: Final = 32  # bodies that a master takes in and checks; then 503
WEBHOOK_DELIVERY_CHARS_MAX: Final = 200  # of the name that a sender gives to a delivery

AFTERS_MAX: Final = 1_000  # definitions of the cluster that come after others
AFTERS_OF_DEFINITION_MAX: Final = 20
AFTERS_OF_PIPELINE_MAX: Final = 20  # definitions that come after one: each is a run
AFTER_DEPTH_MAX: Final = 20  # runs that come after each other; more is a circle that was not seen
AFTERS_AT_ONCE: Final = 100  # in one command

# --- notices ---------------------------------------------------------------------------------------------
NOTICES_OF_DEFINITION_MAX: Final = 10
RECEIVERS_MAX: Final = 50  # of a project; each end of a run looks at all of them
NOTICES_WAITING_MAX: Final = 10_000  # of the cluster; then the oldest are given up: a leader knows them all by heart
NOTICES_AT_ONCE: Final = 16  # on their way
NOTICES_TO_ONE_AT_ONCE: Final = 4  # to one receiver, so that one that hangs does not hold up the others
NOTICE_TRIES_MAX: Final = 10  # some 50 minutes; who is away for longer asks for the runs
NOTICE_AGE_MAX_MS: Final = 24 * 3_600 * 1_000  # nobody wants to be woken by what was yesterday
NOTICE_WAIT_MIN_MS: Final = 1_000
NOTICE_WAIT_MAX_MS: Final = 600_000
NOTICE_RETRY_AFTER_MAX_MS: Final = 3_600_000  # of what a receiver may ask for
NOTICE_URL_CHARS_MAX: Final = 2_000
NOTICE_HEADERS_MAX: Final = 20
NOTICE_HEADERS_BYTES_MAX: Final = 4 * KIB
NOTICE_SECRET_CHARS_MAX: Final = 200
NOTICE_TEMPLATE_BYTES_MAX: Final = 16 * KIB
NOTICE_BODY_BYTES_MAX: Final = 64 * KIB  # made by a template
NOTICE_TASKS_MAX: Final = 100  # that are told of
NOTICE_TASK_REASON_CHARS_MAX: Final = 200
NOTICE_ANSWER_BYTES_MAX: Final = 64 * KIB  # that are read, and thrown away; then we hang up
NOTICE_CONNECT_S: Final = 5.0
NOTICE_TOTAL_S: Final = 15.0

# --- output ----------------------------------------------------------------------------------------------
FRAME_BYTES_MAX: Final = 256 * KIB
FRAME_DELAY_S: Final = 0.02  # how long a frame may wait for company
OUTBOX_BYTES_MAX: Final = 64 * MIB  # full means: stop reading the engine, never drop
MASK_CHARS_MIN: Final = 8  # what is shorter stands in much that is no secret, and is found by trying anyway
LOG_TAIL_BYTES_MAX: Final = 1 * MIB  # of a stream, kept behind a limit: an agent holds it in memory until the end
READERS_MAX: Final = 4_096  # answers of output under way on a master; each has a buffer of some 100 KiB at worst
SEARCHES_MAX: Final = 2  # under way on a master: each takes what cores it can get
SEARCH_WAIT_S: Final = 10.0  # for one of the others to end
SEARCH_S: Final = 10.0  # over many runs, then it is told where to go on
FOUND_DEFAULT: Final = 1_000  # lines of many runs in one answer
FOUND_MAX: Final = 100_000
READER_SILENT_S: Final = 180  # who acknowledges nothing for so long is gone; one that merely stops reads on elsewhere
LOG_TAILS_BYTES_MAX: Final = 32 * MIB  # of all streams of an agent together; then each keeps less

# --- the session between agent and master ------------------------------------------------------------------
SESSION_MESSAGE_BYTES_MAX: Final = 8 * MIB
SLOTS_DEFAULT_PER_CPU: Final = 4
REPORT_BATCH_MAX: Final = 256

# --- the replicated log ----------------------------------------------------------------------------------
ENTRY_BYTES_MAX: Final = 8 * MIB  # a plan and its document fit; it crosses to another master in one message
UNCOMMITTED_BYTES_MAX: Final = 64 * MIB  # then 503 with Retry-After
APPLY_BATCH_MAX: Final = 256
PEER_MESSAGE_BYTES_MAX: Final = 16 * MIB  # an append of 1 MiB, or of one entry that is larger
PEER_QUEUE_BYTES_MAX: Final = 32 * MIB  # then messages to that master are dropped; consensus sends them again
