Feature: Claims are safe
  Runs wait in a queue, workers claim them, and no run is ever done by two.

  Scenario Outline: Two workers on one queue never get the same run
    Given a controller on <store>
    And 20 runs
    When 2 workers claim and finish runs until none is left
    Then each run was given out once
    And each run has succeeded in its first attempt

    Examples:
      | store      |
      | SQLite     |
      | PostgreSQL |

  Scenario Outline: Ten workers, a hundred runs
    Given a controller on <store>
    And 100 runs
    When 10 workers claim and finish runs until none is left
    Then each run was given out once
    And each run has succeeded in its first attempt

    Examples:
      | store      |
      | SQLite     |
      | PostgreSQL |

  Scenario Outline: A run whose worker dies goes to another one
    Given a controller on <store> with leases of 3 s
    And 1 runs
    And node "n1" has joined
    And node "n2" has joined
    When node "n1" claims a run and is never heard of again
    Then node "n2" gets the run within 60 s, as attempt 2
    And what node "n1" reports of it late changes nothing

    Examples:
      | store      |
      | SQLite     |
      | PostgreSQL |

  Scenario: A run is given up after as many lost workers as it may lose
    Given a controller on SQLite with leases of 3 s
    And a run that may be lost once
    And node "n1" has joined
    When node "n1" claims a run and is never heard of again
    Then run "run-1" becomes "Failed" for "AttemptsExhausted" within 60 s
