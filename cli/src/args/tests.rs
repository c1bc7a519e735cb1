use super::*;

#[test]
fn the_command_line_is_consistent() {
    Args::command().debug_assert();
}
