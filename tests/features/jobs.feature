Feature: Jobs are created, run on a node, and leave a result

  Scenario: A new job has an id and waits
    Given a controller on SQLite
    When a job "hello" with the command "echo hello" is created
    Then the answer is 201
    And the answer names an id and the phase "Queued"
    And job "hello" is "Queued"

  Scenario Outline: Echo hello
    Given a controller on <store>
    And a real node "n1"
    When a job "hello" with the command "echo hello" is created
    Then job "hello" becomes "Succeeded"
    And the output of job "hello" is "hello"
    And the result of job "hello" has the exit code 0 and the output "hello"

    Examples:
      | store      |
      | SQLite     |
      | PostgreSQL |

  Scenario: A command that fails
    Given a controller on SQLite
    And a real node "n1"
    When a job "sorry" with the command "exit 3" is created
    Then job "sorry" becomes "Failed"
    And the result of job "sorry" has the exit code 3 and the output ""

  Scenario: A job knows who it is, and nobody can forge that
    Given a controller on SQLite
    And a real node "n1"
    When a job "who" with the command "echo $WINDLASS_TASK_ID $WINDLASS_JOB_NAME" is created
    Then job "who" becomes "Succeeded"
    And the output of job "who" is its id and "who"
    When a job "forged" that sets "WINDLASS_TASK_ID" to "forged" is created
    Then the answer is 422
    And the answer says "`WINDLASS_TASK_ID` is reserved"

  Scenario: Without a network there is nothing but loopback
    Given a controller on SQLite
    And a real node "n1"
    When a job "alone" with the command "ls /sys/class/net 2>/dev/null || tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '" is created
    Then job "alone" becomes "Succeeded"
    And the output of job "alone" is "lo"

  Scenario: A body that is too large is refused
    Given a controller on SQLite
    When a job with an environment of 9 MiB is created
    Then the answer is 413
    And the answer says "more than 8388608 bytes"

  Scenario: A job that is cancelled stops and keeps what it wrote
    Given a controller on SQLite
    And a real node "n1"
    When a job "endless" with the command "echo begun; sleep 1000" is created
    Then job "endless" has written "begun"
    When job "endless" is cancelled
    Then job "endless" becomes "Cancelled"
    And the output of job "endless" is "begun"
