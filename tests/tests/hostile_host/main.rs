//! The host tries, in VMs: an attacker who speaks the agent's protocol. What needs no VM is tested beside the service
//! (`guest-agent/src/service/tests.rs`); here is what needs the kernel, an image and containers.
//!
//! Each attack is a pair where one can be had: what a closed door refuses is done to an open one, where it works. Three VMs serve all of it,
//! one for each state of the door: before CreateSandbox, closed, open. So each attack also has to leave its guest in a state in which the
//! others fail. The monitor is hostile as well: it gives every guest devices that nobody asked for.

mod bed;
mod disks;
mod host;
mod images;
mod inside;
mod place;
mod ports;
mod sandbox;
mod specs;
mod states;

use std::process::ExitCode;
use tests::{runner, tests};

use bed::HostileBed;
use disks::a_disk_of_a_lying_host_fails_and_nothing_else;
use images::other_images_and_other_bytes_are_refused;
use inside::{a_container_cannot_reach_the_guest, only_the_image_says_what_stays_writable_in_a_read_only_root};
use place::{a_failed_creation_gives_its_place_back, a_place_is_taken_once_side_by_side};
use ports::{a_flood_is_outlived, ports_of_the_loopback_stay_closed, streams_and_volumes_are_those_that_were_admitted};
use sandbox::{a_second_sandbox_does_not_open_the_door, before_the_sandbox_every_port_is_closed, of_many_initdatas_one_counts};
use specs::what_the_host_changes_is_refused;
use states::every_request_in_every_state_has_its_answer;

fn main() -> ExitCode {
    runner::main_with(
        HostileBed::start,
        1,
        tests![
            before_the_sandbox_every_port_is_closed,
            of_many_initdatas_one_counts,
            a_second_sandbox_does_not_open_the_door,
            what_the_host_changes_is_refused,
            other_images_and_other_bytes_are_refused,
            a_place_is_taken_once_side_by_side,
            a_failed_creation_gives_its_place_back,
            a_container_cannot_reach_the_guest,
            only_the_image_says_what_stays_writable_in_a_read_only_root,
            every_request_in_every_state_has_its_answer,
            streams_and_volumes_are_those_that_were_admitted,
            ports_of_the_loopback_stay_closed,
            a_disk_of_a_lying_host_fails_and_nothing_else,
            a_flood_is_outlived,
        ],
    )
}
