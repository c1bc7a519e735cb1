Feature: A node is given its work by its Worker API

  Scenario: The configuration brings a token for the Worker API
    Given a controller on SQLite
    And node "n1" is declared to be given its work
    And node "n1" has joined
    When node "n1" asks for its configuration
    Then the answer is 200
    And the answer holds a token for the Worker API that expires
    When somebody without a token asks for a configuration
    Then the answer is 401

  Scenario Outline: Echo hello, pushed
    Given a controller on <store>
    And a real node "n1" that is given its work
    When a job "hello" with the command "echo hello" is created
    Then job "hello" becomes "Succeeded"
    And the output of job "hello" is "hello"
    And the result of job "hello" has the exit code 0 and the output "hello"
    And the agent of node "n1" was given the job

    Examples:
      | store      |
      | SQLite     |
      | PostgreSQL |

  Scenario: Another orchestrator runs a job
    Given a controller on SQLite
    And a real node "n1" that is given its work
    When an orchestrator has node "n1" run "echo hello"
    Then the answer is 200
    And the run is "completed" with the exit code 0 and the output "hello"
    When an orchestrator has node "n1" run "exit 3"
    Then the run is "failed" with the exit code 3 and the output ""

  Scenario Outline: Neither network policy lets anything through
    Given a controller on SQLite
    And a real node "n1" that is given its work
    When an orchestrator has node "n1" run "ls /sys/class/net 2>/dev/null || tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '" with the network policy "<policy>"
    Then the run is "completed" with the exit code 0 and the output "lo"

    Examples:
      | policy     |
      | none       |
      | restricted |

  Scenario: An unknown network policy is refused
    Given a controller on SQLite
    And a real node "n1" that is given its work
    When an orchestrator has node "n1" run "true" with the network policy "open"
    Then the answer is 400
    And the answer says "network_policy"

  Scenario: A job knows its task and its workspace, and nobody can forge that
    Given a controller on SQLite
    And a real node "n1" that is given its work
    When an orchestrator has node "n1" run "echo $WINDLASS_TASK_ID $WINDLASS_JOB_ID $WINDLASS_WORKSPACE_DIR"
    Then the run has written its task, its job and "/workspace"
    When an orchestrator has node "n1" run a job that sets "WINDLASS_TASK_ID" to "forged"
    Then the answer is 400
    And the answer says "`WINDLASS_TASK_ID` is reserved"

  Scenario: A request that is too large is refused
    Given a controller on SQLite
    And a real node "n1" that is given its work
    When an orchestrator sends node "n1" a request of 11 MiB
    Then the answer is 413

  Scenario: A wrong token is refused
    Given a controller on SQLite
    And a real node "n1" that is given its work
    When somebody with the token "made-up" has node "n1" run "true"
    Then the answer is 401
