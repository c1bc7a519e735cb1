Feature: Nodes join with a token and say what they can do
  A node registers once with a join token. From then on its own token is all that it shows.

  Scenario Outline: Registration yields a token of the node's own and a row
    Given a controller on <store>
    When node "n1" registers with a join token
    Then the answer is 201
    And the answer brings a token of node "n1" and the URL of its configuration
    And the controller lists node "n1"

    Examples:
      | store      |
      | SQLite     |
      | PostgreSQL |

  Scenario: Without a token that works nobody joins
    Given a controller on SQLite
    When node "n1" registers with the token "wl-made-up"
    Then the answer is 401
    And the controller lists no node "n1"

  Scenario Outline: A report of capabilities is kept as a snapshot and changes the hash
    Given a controller on <store>
    And node "n1" has joined
    When node "n1" reports 48 cores
    Then the answer is 204
    And the controller shows 48 cores of node "n1"
    And the database holds 2 snapshots of node "n1" with different hashes

    Examples:
      | store      |
      | SQLite     |
      | PostgreSQL |

  Scenario: A node is asked to report when its hash is not the one that is known
    Given a controller on SQLite
    And node "n1" has joined
    When node "n1" beats with the hash "sha256:of-something-else"
    Then node "n1" is asked for its capabilities
