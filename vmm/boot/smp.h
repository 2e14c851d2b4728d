/* SPDX-License-Identifier: MIT */
/* Starting the further processors. */
#pragma once

/* The idle domain and its vCPU of each CPU. */
void idle_init(void);
/* Start what ACPI lists and maxcpus= allows, one after the other; nr_cpus and pcpus[] say who came up. */
void smp_start(void);
