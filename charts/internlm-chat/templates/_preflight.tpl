{{/* The Job that tries new images and settings while the old pod still serves: when there is one, what it runs, and where. */}}

{{/*
"true" where an upgrade brings an image or settings that do not serve yet, and takes the place of a pod that does. With `rollout.surge` that pod
stays until the new one serves; and where none is ready, an upgrade that is to mend it is not held up.
*/}}
{{- define "chat.preflights" -}}
{{- if and .Release.IsUpgrade .Values.rollout.preflight (not .Values.rollout.surge) }}
{{- if dig "status" "readyReplicas" 0 (include "chat.deployed" . | fromYaml) }}
{{- $settings := ne (include "chat.deployed.settings" .) (include "chat.settings" . | fromYaml | toYaml) }}
{{- if or $settings (include "chat.preflight.newImages" .) }}true{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "chat.preflight.newImages" -}}
{{- $known := include "chat.deployed.images" . | fromYamlArray }}
{{- range include "chat.preflight.images" . | fromYamlArray }}
{{- if not (has . $known) }}{{ . }} {{ end }}
{{- end }}
{{- end }}

{{/* Every image of the new pods. */}}
{{- define "chat.preflight.images" -}}
- {{ include "chat.serverImage" . | quote }}
{{- if include "chat.model.onClaim" . }}
- {{ include "chat.downloaderImage" . | quote }}
{{- end }}
{{- if eq (include "chat.model.source" .) "image" }}
- {{ .Values.model.image | quote }}
{{- end }}
{{- end }}

{{/* No Secret and no ConfigMap, and nothing of `extra...`: this upgrade may be what brings them. */}}
{{- define "chat.preflight.pod" -}}
{{- /* One after the other: the pod asks for as much as one of them. */}}
{{- if include "chat.model.onClaim" . }}
initContainers:
  - {{- include "chat.preflight.container" (list . "download" (include "chat.downloaderImage" .)) | nindent 4 }}
{{- end }}
containers:
  - {{- include "chat.preflight.container" (list . "server" (include "chat.serverImage" .)) | nindent 4 }}
volumes:
  {{- include "chat.scratchVolumes" . | nindent 2 }}
  {{- if eq (include "chat.model.source" .) "image" }}
  {{- include "chat.modelImageVolume" . | nindent 2 }}
  {{- end }}
{{- include "chat.hook.placement" (list . (include "chat.preflight.beside" . | fromYaml)) | nindent 0 }}
{{- end }}

{{/* `(list . name image)` */}}
{{- define "chat.preflight.container" -}}
{{- $name := index . 1 }}
{{- $image := index . 2 }}
{{- with index . 0 -}}
name: {{ $name }}
image: {{ $image | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [internlm-chat, check, --settings]
env:
  {{- include "chat.settingsAsEnv" (include "chat.settings" .) | nindent 2 }}
  # The image asks NVIDIA's runtime for every GPU of the node; here, for none.
  - {name: NVIDIA_VISIBLE_DEVICES, value: void}
terminationMessagePolicy: FallbackToLogsOnError
resources: {{- include "chat.testResources" . | nindent 2 }}
securityContext: {{- include "chat.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  {{- include "chat.scratchMounts" . | nindent 2 }}
  {{- if eq (include "chat.model.source" .) "image" }}
  - {name: model, mountPath: {{ include "chat.model.mountPath" . }}, readOnly: true}
  {{- end }}
{{- end }}
{{- end }}

{{/* On the server's node, if there is room: an image that is pulled there is there for the new pod. */}}
{{- define "chat.preflight.beside" -}}
preferredDuringSchedulingIgnoredDuringExecution:
  - weight: 100
    podAffinityTerm:
      topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels: {{- include "chat.podSelectorLabels" . | nindent 10 }}
{{- end }}
