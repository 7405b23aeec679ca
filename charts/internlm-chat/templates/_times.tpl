{{/* Every time span of the release follows from `requestTimeout` and `startupBudget`. */}}

{{- define "chat.ports.api" -}}6006{{- end }}
{{- define "chat.ports.metrics" -}}6007{{- end }}

{{/* Seconds after SIGTERM in which the server still answers new connections, with 503. */}}
{{- define "chat.drainDelay" -}}2{{- end }}

{{/* Seconds from the decision to stop a pod until its longest answer has ended. */}}
{{- define "chat.drainSeconds" -}}
{{- add .Values.rollout.preStopDelay (include "chat.drainDelay" . | int) .Values.requestTimeout }}
{{- end }}

{{/* 15 seconds to close and leave after the last answer. */}}
{{- define "chat.gracePeriod" -}}
{{- .Values.rollout.gracePeriod | default (add (include "chat.drainSeconds" . | int) 15) }}
{{- end }}

{{/* A proxy waits longer than the server works: the client gets the server's 504 and its reason, not the proxy's. */}}
{{- define "chat.proxyTimeout" -}}
{{- add .Values.requestTimeout 10 }}
{{- end }}

{{- define "chat.startupProbePeriod" -}}5{{- end }}

{{- define "chat.startupProbeFailures" -}}
{{- $period := include "chat.startupProbePeriod" . | int }}
{{- div (add .Values.startupBudget (sub $period 1)) $period }}
{{- end }}

{{/* A rollout may first have to wait for the old pod's last answer. */}}
{{- define "chat.progressDeadline" -}}
{{- add .Values.startupBudget (include "chat.gracePeriod" . | int) 60 }}
{{- end }}
