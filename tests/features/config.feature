Feature: A node gets its configuration and says what became of it

  Scenario Outline: The configuration comes with a version, for the node's token alone
    Given a controller on <store>
    And node "n1" has joined
    When node "n1" asks for its configuration
    Then the answer is 200
    And the answer holds configuration version 1 of node "n1"
    When somebody without a token asks for a configuration
    Then the answer is 401
    When somebody with the token "made-up" asks for a configuration
    Then the answer is 401

    Examples:
      | store      |
      | SQLite     |
      | PostgreSQL |

  Scenario: A changed configuration is a newer version
    Given a controller on SQLite
    And node "n1" has joined
    When the configuration of node "n1" is given the label "zone" with "cellar"
    And node "n1" asks for its configuration
    Then the answer holds configuration version 2 of node "n1"

  Scenario Outline: An acknowledgement is recorded
    Given a controller on <store>
    And node "n1" has joined
    When node "n1" acknowledges version "1" as "applied"
    Then the answer is 204
    And version 1 of node "n1" is acknowledged and applied
    When the configuration of node "n1" is given the label "zone" with "cellar"
    And node "n1" acknowledges version "2" as "failed"
    Then version 2 of node "n1" is acknowledged and version 1 applied

    Examples:
      | store      |
      | SQLite     |
      | PostgreSQL |

  Scenario: An acknowledgement for another node is refused
    Given a controller on SQLite
    And node "n1" has joined
    And node "n2" has joined
    When node "n1" acknowledges version "1" for node "n2"
    Then the answer is 400
    And the answer says "node_slug is `n2`"

  Scenario: A version that was never given out is refused
    Given a controller on SQLite
    And node "n1" has joined
    When node "n1" acknowledges version "9" as "applied"
    Then the answer is 400
    And the answer says "was never issued"
