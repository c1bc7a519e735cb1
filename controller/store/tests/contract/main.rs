//! What a store promises, as named cases. The same cases run against every database: a case gets an empty store and
//! speaks only of the public API.

#![expect(clippy::unwrap_used, reason = "a case that cannot go on has failed")]

mod cases;
mod faults;
mod fixtures;
mod invariants;
mod plans;
mod schema;

/// Runs every case against SQLite in memory and on disk, and against PostgreSQL.
macro_rules! contract {
    ($($module:ident { $($case:ident)* })*) => {
        mod sqlite_in_memory {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::cases::$module::$case(crate::fixtures::in_memory().await).await;
                })*
            })*
        }

        mod sqlite_on_disk {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let folder = tempfile::tempdir().expect("a temporary folder");
                    let store = crate::fixtures::on_disk(folder.path()).await;
                    crate::cases::$module::$case(store).await;
                })*
            })*
        }

        mod postgres {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let database = windlass_test_postgres::Server::shared().database();
                    let store = crate::fixtures::on_server(&database.url()).await;
                    crate::cases::$module::$case(store).await;
                    database.remove();
                })*
            })*
        }
    };
}

contract! {
    secrets {
        values_read_back_and_setting_one_leaves_the_others
        lists_tell_of_values_without_them
        a_secret_with_too_many_keys_is_left_as_it_was
        a_secret_is_gone_with_its_last_key
        keys_are_wrapped_anew_unless_the_value_has_changed
    }
    creating {
        a_created_job_reads_back_as_it_was_answered
        a_batch_answers_in_order
        a_taken_name_yields_the_job_that_has_it
        a_name_repeated_in_one_batch_is_taken
        the_same_name_in_another_namespace_is_free
        a_repeated_idempotency_key_replays_the_job_as_it_is_now
        an_idempotency_key_with_another_request_is_refused
        an_idempotency_key_repeated_in_one_batch_is_replayed
        an_expired_idempotency_key_is_free_again
        an_idempotency_key_of_a_deleted_job_does_not_run_it_again
        a_missing_input_refuses_the_whole_batch
        a_job_that_needs_approval_is_not_claimed_before
        a_phase_that_no_new_job_has_is_refused
        a_spec_of_a_megabyte_survives
        unicode_and_nul_survive_in_names_of_labels_and_specs
        jobs_of_one_requirement_share_a_class
        classes_are_listed_once_and_ids_grow
    }
    listing {
        lists_are_newest_first_and_pages_neither_repeat_nor_skip
        a_cursor_stays_where_it_is_while_jobs_are_created_and_deleted
        filters_narrow_by_everything_they_name
        several_phases_are_merged_in_order
        a_cursor_survives_as_text_and_nonsense_is_refused
        jobs_by_uid_come_in_the_order_asked_for
    }
    changing {
        a_suspended_job_waits_and_a_resumed_one_is_claimed
        a_new_priority_moves_a_queued_job
        a_patch_on_a_stale_version_conflicts
        a_patch_that_changes_nothing_keeps_the_version
        labels_replace_labels_and_are_found
        a_new_ttl_of_an_ended_job_counts_from_its_end
        a_queued_job_is_cancelled_at_once
        a_job_that_needs_approval_is_cancelled_at_once
        a_held_job_is_cancelled_through_its_node
        an_ended_job_is_not_cancelled
        cancelling_or_deleting_what_does_not_exist_says_so
        a_retry_reopens_with_counters_reset_and_the_next_claim_has_a_new_epoch
        a_job_that_has_not_ended_is_not_retried
        a_held_job_is_not_deleted
        a_deleted_job_leaves_nothing_but_the_bodies_to_remove
    }
    claiming {
        a_claim_makes_an_attempt_with_a_lease
        two_claimers_never_share_a_job
        priority_comes_first_then_age
        a_claim_keeps_within_the_slots
        a_claim_keeps_within_cpu_memory_and_gpus
        a_job_too_large_for_what_is_free_hides_nothing
        a_thousand_jobs_too_large_hide_nothing
        only_served_queues_are_claimed
        only_fitting_classes_are_claimed
        many_classes_are_claimed_in_order
        a_node_that_fits_few_of_many_classes_finds_its_jobs
        a_fitting_job_behind_thousands_that_do_not_fit_is_found
        lanes_that_run_dry_give_way_to_others_in_order
        a_delayed_job_is_claimed_when_its_time_has_come
        the_next_ready_time_is_the_earliest_in_the_future
        a_repeated_request_yields_the_same_attempts
        what_a_repeated_request_yields_is_given_back_by_nobody_who_had_it_before
        a_repeated_request_leaves_out_what_has_ended
        an_unregistered_node_claims_nothing
        another_run_of_the_agent_claims_nothing
        the_policy_for_offline_times_chooses_the_lease
        a_waiting_job_frees_its_slot_and_cpu_but_not_its_memory
        a_claim_is_noted_on_the_node
        nothing_is_claimed_for_a_maximum_of_zero
    }
    merging {
        a_creation_fails_alone
        one_name_is_created_once
        each_node_gets_what_fits_it_and_no_more
        each_node_keeps_its_own_lease_and_request
        of_two_reports_about_a_job_one_decides
    }
    leasing {
        a_beat_renews_only_what_it_lists
        a_lease_is_cut_short_only_as_far_as_the_node_keeps_to
        a_beat_fences_what_is_not_the_nodes
        a_beat_orders_the_cancel_of_what_it_renews
        a_beat_of_another_run_renews_nothing
        a_beat_of_an_unknown_node_renews_nothing
        beats_of_many_nodes_go_in_one_batch
        a_beat_keeps_what_the_node_says_of_itself
        leases_that_have_ended_are_listed_oldest_first
        a_planned_stop_extends_leases_and_shortens_none
        leases_follow_a_clock_that_was_put_forward
        live_attempts_are_those_the_node_holds
    }
    reporting {
        a_record_is_stored_once
        records_come_in_any_order_and_read_in_theirs
        a_record_repeated_in_one_batch_is_stored_once
        a_record_of_an_unknown_job_is_rejected
        a_record_of_another_nodes_attempt_is_rejected
        a_record_with_sequence_zero_is_rejected
        a_record_of_a_fenced_attempt_is_superseded_and_changes_nothing
        logs_are_complete_when_the_last_gap_is_closed
        logs_complete_at_once_when_all_came_before_the_end
        a_record_beyond_the_terminal_one_does_not_count
        log_bodies_survive_byte_for_byte
        a_body_in_the_object_store_is_pointed_to
        logs_are_filtered_and_read_on_from_a_cursor
        an_accepted_event_record_becomes_an_event_of_the_job_once
        a_duplicate_in_a_new_batch_changes_no_job
        reports_of_many_attempts_go_in_one_batch
        what_would_become_of_a_record_is_told_before_it_is_reported
    }
    transitions {
        a_transition_on_a_stale_version_is_refused
        a_transition_of_a_stale_epoch_is_refused
        a_transition_of_an_ended_job_is_refused
        a_transition_of_an_unknown_job_is_stale
        of_two_transitions_of_a_job_only_the_first_happens
        a_stale_transition_keeps_the_records
        a_queued_job_does_not_become_running_by_a_transition
        an_approved_job_is_claimed
        an_attempt_that_is_live_where_its_job_is_not_held_is_refused
        a_lost_attempt_goes_back_to_the_queue_with_a_delay
        the_next_claim_of_a_lost_job_has_a_higher_epoch
        a_running_job_notes_steps_and_start
        an_end_sets_the_time_to_live
        a_transition_without_an_attempt_ends_it_all_the_same
        nul_in_messages_is_replaced
        versions_grow_with_every_change
        what_is_learned_after_the_end_completes_the_picture_and_moves_nothing
        a_picture_is_completed_only_of_an_ended_job_as_it_was_decided_on
        what_is_learned_of_a_fenced_attempt_changes_nothing
    }
    artifacts {
        a_manifest_becomes_rows_once_and_only_the_first_of_a_name_counts
        an_artifact_gets_one_body_and_keeps_it
        the_bodies_of_an_attempt_stay_within_their_bound_together
        what_a_removed_node_has_not_sent_is_lost
        what_a_replaced_node_has_not_sent_is_lost
        one_artifact_is_found_by_its_number_or_its_name
        bodies_are_taken_of_the_node_that_has_the_attempt_alone
        a_body_that_will_never_come_is_a_gap_until_it_comes_all_the_same
        artifacts_and_their_bodies_go_with_their_job
        artifacts_of_a_fenced_attempt_are_kept_for_a_while
        a_body_of_an_artifact_is_unnamed_unless_its_own_row_names_it
    }
    facts {
        the_last_facts_of_a_node_are_kept_once_and_go_with_it
    }
    nodes {
        a_new_node_needs_a_token
        a_new_node_with_a_token_is_created_and_the_use_is_counted
        a_known_node_proves_its_key_and_needs_no_token
        a_known_name_with_another_key_is_taken
        a_known_name_without_proof_needs_it
        a_presented_key_must_be_proven
        a_replace_token_stores_the_new_key
        a_replace_token_is_for_its_node_only
        an_expired_token_is_invalid
        a_revoked_token_is_invalid
        a_used_up_token_is_invalid
        of_many_nodes_with_one_use_one_is_admitted
        a_declared_node_that_registers_keeps_its_configuration
        a_configuration_grows_its_version_only_when_it_differs
        version_ten_is_newer_than_nine
        a_configuration_on_a_stale_version_conflicts
        an_acknowledgement_of_a_lower_version_changes_nothing
        a_failed_acknowledgement_keeps_the_applied_version
        an_acknowledgement_of_an_unknown_node_is_refused
        capability_reports_replace_each_other
        conditions_are_set_on_the_version_they_were_judged_on
        a_node_with_attempts_is_not_deleted
        a_deleted_node_needs_a_token_again
        a_forgotten_node_may_come_back_with_the_token_it_has
        nodes_are_listed_with_what_they_hold
    }
    placement {
        usage_sums_up_what_each_node_holds
        holders_are_the_jobs_of_the_nodes_asked_for
        a_position_counts_the_ready_jobs_of_the_queue_that_are_before
        counting_a_position_ends_somewhere
    }
    fleet {
        a_cordon_is_set_once_and_lifted_once
        a_manifest_and_a_cordon_leave_each_other_alone
        a_claim_on_its_way_when_its_node_is_cordoned_gets_nothing
        a_drain_takes_the_place_of_a_cordon_and_of_an_earlier_drain
        a_drain_goes_on_once_and_on_the_version_it_was_judged_on
        what_is_asked_of_an_unknown_node_is_refused
        a_node_that_goes_takes_its_cordon_and_history_with_it
        a_node_is_forced_out_and_its_attempts_end_with_their_leases
        the_history_tells_the_life_of_a_node
        the_history_keeps_only_the_last_of_it
        a_note_that_repeats_the_last_one_is_not_kept
    }
    pushing {
        a_token_has_a_number_and_comes_with_a_newer_configuration
        a_token_of_a_node_that_has_answered_makes_a_newer_configuration
        a_roll_out_takes_a_newer_token_for_its_own_version
        how_calls_go_is_written_when_it_changes
        nothing_is_heard_of_a_node_by_a_claim_on_its_behalf
    }
    queues {
        a_job_that_has_waited_long_enough_is_not_overtaken
        a_lost_job_keeps_its_place_and_one_that_is_opened_again_waits_anew
        a_limit_holds_over_all_nodes_and_hides_nothing
        claimers_at_the_same_time_keep_a_limit_together
        a_limit_holds_with_many_classes
        weights_share_what_runs
        weights_share_with_many_classes_and_sizes
        priority_and_age_order_the_jobs_of_a_queue_with_a_weight
        settings_are_listed_with_what_runs
    }
    reserving {
        the_first_of_each_lane_are_listed_in_line
        jobs_that_come_later_get_only_what_is_left_beside
        a_job_that_comes_before_is_never_refused
        the_last_slot_is_kept_too
        another_node_may_take_the_job_and_frees_what_was_kept
        one_node_keeps_room_for_one_job
        nothing_is_kept_for_a_job_that_could_not_be_claimed
        what_is_kept_goes_with_the_job_and_with_the_node
        queues_with_weights_honour_what_is_kept
        what_is_kept_is_honoured_with_many_classes
        ten_thousand_distinct_requirements_are_claimed_in_line
    }
    rollouts {
        a_roll_out_reads_back_as_it_was_started
        a_step_changes_the_node_and_is_noted_in_its_history
        what_somebody_has_declared_in_between_is_what_a_node_had_before
        a_configuration_that_is_declared_again_is_a_new_version
        steps_happen_on_the_version_they_were_decided_on_or_not_at_all
        a_node_belongs_to_one_open_roll_out
        a_node_that_is_deregistered_leaves_its_roll_out
        only_the_last_hundred_that_have_ended_are_kept
    }
    origins {
        an_object_gets_one_job_however_often_it_is_seen
        an_object_whose_job_was_deleted_is_not_run_again
        an_object_whose_name_is_taken_is_not_remembered
        what_was_released_belongs_to_its_object_again_when_it_is_seen
        one_subject_belongs_to_one_object
        an_object_with_an_impossible_job_leaves_nothing
    }
    keeping {
        tokens_are_found_by_their_secret
        an_api_token_ends_with_the_one_that_replaces_it
        a_token_that_is_known_is_not_created_again
        a_setting_is_made_once
        a_template_version_with_other_content_is_refused
        an_earlier_template_version_becomes_current_again
        templates_are_listed_and_deleted
        an_input_in_use_is_not_deleted
        an_unreferenced_input_is_listed_once_it_is_old
        removals_are_remembered_until_confirmed
        pruning_forgets_what_is_due_in_small_batches
        a_body_is_unnamed_unless_its_own_row_names_it
        what_is_removed_or_replaced_on_a_stale_version_stays
        queue_statistics_count_every_state
        counts_see_everything
        events_are_read_on_from_a_cursor
        a_ttl_that_is_due_is_listed
        wake_ups_come_after_the_commit
        a_ping_writes
        operations_at_the_same_time_fail_alone
    }
}
